"""The session: what is asked, what is read from the store, and what is kept."""

from __future__ import annotations

import pytest

from capcheck import compare, generation
from capcheck.backends.scripted import ScriptedBackend
from capcheck.capability import Capability
from capcheck.errors import ModelError, UsageError, VacuousError
from capcheck.recipe import Recipe
from capcheck.result import Verdict
from capcheck.session import Session
from capcheck.settings import Settings
from capcheck.store import Store
from capcheck.tasks.perplexity import perplexity
from capcheck.testing import ScriptedModels

ROWS = [{"prompt": f"question {i}", "answers": "right"} for i in range(300)]
QA = generation(ROWS, name="qa")
TEXT = perplexity([{"text": f"text {i}"} for i in range(40)], name="text")
RTN = Recipe.parse("rtn:4")
DENSE = Recipe()


def right(recipe, kind, question):
    return "right" if kind == "generate" else -1.0


class Models(ScriptedModels):
    """Counts what is asked of whom, and runs `before` before a back end is given."""

    def __init__(self, settings, script=right, before=lambda: None):
        self.asked = []
        self.before = before

        def noted(recipe, kind, question):
            self.asked.append((recipe, question))
            return script(recipe, kind, question)

        super().__init__(settings, noted)

    def backend(self, recipe, *, control=False):
        self.before()
        return super().backend(recipe, control=control)


def session(settings=None, script=right, store=None, before=lambda: None):
    settings = settings or Settings(model="m")
    found = Session(settings, Models(settings, script, before), store or Store(None))
    found._perplexity = TEXT
    return found


def test_what_the_store_has_is_not_asked_again(tmp_path):
    first = session(store=Store(tmp_path))
    assert first.compare(QA, RTN).retention.value == 1.0
    assert len(first.models.asked) == 600
    first.close()
    second = session(store=Store(tmp_path))
    assert second.compare(QA, RTN).retention.value == 1.0
    assert second.models.asked == []
    assert second.compare(QA, Recipe.parse("rtn:8")).retention.value == 1.0
    assert {recipe for recipe, _ in second.models.asked} == {"rtn:8"}


def test_the_control_is_asked_afresh_in_another_order_and_is_not_kept(tmp_path):
    store = Store(tmp_path)
    first = session(store=store)
    dense = first.replies(DENSE, QA, QA.items, control=False)
    count = len(first.models.asked)
    assert first.replies(DENSE, QA, QA.items, control=True) == dense
    control = [question for _, question in first.models.asked[count:]]
    assert control == [question for _, question in first.models.asked[:count]][::-1]
    first.replies(DENSE, QA, QA.items, control=True)
    assert len(first.models.asked) == 3 * count
    (kept,) = store._database.execute("SELECT COUNT(*) FROM replies").fetchone()
    assert kept == count


def test_what_another_worker_asked_while_we_waited_is_not_asked_again(tmp_path):
    def meanwhile():
        other = session(store=Store(tmp_path))
        other.replies(DENSE, QA, QA.items, control=False)

    waiting = session(store=Store(tmp_path), before=meanwhile)
    found = waiting.replies(DENSE, QA, QA.items, control=False)
    assert len(found) == 300
    assert waiting.models.asked == []


def test_a_failure_in_the_middle_keeps_what_was_asked(tmp_path):
    def breaking(recipe, kind, question):
        if question == "question 200":
            raise ModelError("the logits are not finite")
        return "right"

    with pytest.raises(ModelError, match=r"^qa \[dense\]: the logits are not finite$"):
        session(script=breaking, store=Store(tmp_path)).replies(DENSE, QA, QA.items, control=False)
    again = session(store=Store(tmp_path))
    again.replies(DENSE, QA, QA.items, control=False)
    assert len(again.models.asked) == 300 - 128


def test_an_error_of_the_perplexity_is_raised_every_time():
    def breaking(recipe, kind, question):
        if kind == "document":
            raise ModelError("no")
        return "right"

    found = session(script=breaking)
    for _ in range(2):
        with pytest.raises(ModelError):
            found.perplexity_ratio(RTN)


def test_the_perplexity_ratio_is_measured_once():
    found = session()
    assert found.perplexity_ratio(RTN).value == 1.0
    count = len(found.models.asked)
    assert found.perplexity_ratio(RTN).value == 1.0
    assert len(found.models.asked) == count


def test_records_name_the_reference(tmp_path):
    found = session(Settings(model="m", records=tmp_path / "records.jsonl"))
    assert found.compare(QA, RTN, against=Recipe.parse("rtn:8")).drop.value == 0.0
    records = [record.to_json() for record in found.records]
    assert len(records) == 300
    assert records[0]["against"] == "rtn:8"
    assert set(records[0]) == {"task", "recipe", "against", "item", "dense", "compressed"}
    assert session().compare(QA, RTN).drop.value == 0.0


def test_no_records_unless_asked_for():
    found = session()
    assert found.compare(QA, RTN).drop.value == 0.0
    assert found.records == []


def test_a_capability_is_of_no_use_after_its_test():
    found = session()
    capability = Capability(found, RTN, found.settings)
    comparison = capability(QA)
    capability.close()
    for late in (
        lambda: capability(QA),
        lambda: comparison.retention >= 0.9,
        lambda: comparison.drop.value,
        lambda: comparison.broken,
        lambda: comparison.scores,
        lambda: capability.perplexity,
        lambda: capability.tokens("a"),
        lambda: capability.context,
        lambda: capability.max_kept(4),
    ):
        with pytest.raises(UsageError, match="after its test had ended"):
            late()
    assert found.models.asked == []
    assert capability.gates == []


def test_what_a_capability_tells_of_recipe_and_model():
    found = session()
    capability = Capability(found, RTN, found.settings)
    assert capability.recipe == RTN
    assert capability.tokens("two words") == 2
    assert capability.context == 1 << 30
    assert capability.max_kept(4) == {"layer.weight": 2}
    assert capability.perplexity.task is TEXT


def test_out_of_time_measures_no_perplexity():
    found = session(Settings(model="m", time_budget=1e-9))
    assert found.perplexity_ratio(RTN) is None
    assert found.models.asked == []


def test_compare_needs_no_pytest_and_no_session():
    dense = ScriptedBackend(lambda prompt: "right", documents=lambda text: -1.0)
    broken = ScriptedBackend(
        lambda prompt: "wrong",
        lambda pair: -1.0 if "right" in pair[1] else -2.0,
        documents=lambda text: -1.0,
    )
    assert compare(QA, dense, dense).retention >= 0.9
    found = compare(QA, dense, broken, settings=Settings(items="all"))
    assert not found.retention >= 0.9
    assert found.retention.gate.verdict is Verdict.DEGRADED
    assert len(found.broken) == 300
    assert {flip.lost for flip in found.broken} == {"in generation"}
    with pytest.raises(VacuousError):
        _ = compare(QA, broken, dense).drop <= 0.1


def test_compare_knows_perplexity():
    dense = ScriptedBackend(documents=lambda text: -1.0)
    worse = ScriptedBackend(documents=lambda text: -3.0)
    assert compare(TEXT, dense, dense).ratio <= 1.05
    assert not compare(TEXT, dense, worse).ratio <= 1.05
    babble = ScriptedBackend(documents=lambda text: -100.0)
    with pytest.raises(VacuousError):
        _ = compare(TEXT, babble, dense).ratio <= 1.05


@pytest.mark.parametrize("thing", ["qa", None, ROWS])
def test_only_a_task_is_compared(thing):
    with pytest.raises(UsageError, match=r"takes a task, not a (str|NoneType|list)"):
        session().compare(thing, RTN)


def test_items_that_a_recipe_was_calibrated_on_are_counted():
    long = [f"what does question number {i} of this very long list ask of us" for i in range(300)]
    task = generation([{"prompt": text, "answers": "right"} for text in long], name="long")
    found = session()
    found.models.calibration_texts = lambda recipe: [f"{text} right?" for text in long[:30]]
    gates = []
    settings = Settings(model="m", items="all")
    assert found.compare(task, RTN, record=gates.append, settings=settings).retention >= 0.9
    assert (gates[0].overlap, gates[0].used) == (30, 300)
    # Documents are compared whole: of `TEXT`, two words each, none is long enough.
    assert found.compare(TEXT, RTN, record=gates.append).ratio <= 2
    assert gates[1].overlap == 0
