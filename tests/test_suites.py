"""The bundled suites: what they ask, and that nothing but the capability can earn a score."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from capcheck import Comparison, Recipe
from capcheck.result import Claim
from capcheck.task import Task
from capcheck.tasks.choices import Choices
from capcheck.tasks.generation import Generation
from capcheck.tasks.perplexity import Perplexity

SUITES = Path(__file__).parent.parent / "suites"
FILES = sorted(SUITES.glob("test_*.py"))

PRINT_FINGERPRINTS = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
import test_suites
print(*test_suites.fingerprints())
assert "torch" not in sys.modules
"""


def loaded(file):
    spec = importlib.util.spec_from_file_location(f"suite_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tasks_of(module):
    for value in vars(module).values():
        found = value.values() if isinstance(value, dict) else [value]
        yield from (task for task in found if isinstance(task, Task))


def asked():
    """Return every task of every suite, by file and name, facts tier by tier."""
    found = {}
    for file in FILES:
        for task in tasks_of(MODULES[file.stem]):
            parts = [task]
            if file.stem == "test_factual_qa":
                parts = [task.where(tier=tier) for tier in ("head", "middle", "tail")]
            found |= {f"{file.stem}:{part.name}": part for part in parts}
    return found


MODULES = {file.stem: loaded(file) for file in FILES}
TASKS = asked()
GENERATIONS = {name: task for name, task in TASKS.items() if isinstance(task, Generation)}


def each(tasks):
    return pytest.mark.parametrize("task", tasks.values(), ids=list(tasks))


def mean(task, answer):
    """Return the mean score of a function from item to answer."""
    scores = [task.score(i, {"text": answer(i), "finished": True}).value for i in task.items]
    return sum(scores) / len(scores)


def right(item):
    """Return an answer that a perfect model gives."""
    return " " + (item["summary"] if "summary" in item else item["answer"])


def fingerprints():
    return sorted(
        task.name + task.fingerprint_of(task.items[:50])
        for task in TASKS.values()
        if task.name not in ("needle_1024", "needle_2048")  # no other than the shorter, but slow
    )


def test_the_suites_are_there():
    names = "factual_qa knowledge_nm long_context perplexity retrieval summarization"
    assert [file.stem for file in FILES] == [f"test_{name}" for name in names.split()]
    assert len({task.name for task in TASKS.values()}) == len(TASKS)


@each(TASKS)
def test_every_task_has_items_enough_for_a_verdict(task):
    assert len(task.items) >= 300
    if task.cluster is not None:
        assert len({item[task.cluster] for item in task.items}) >= 300


@each(TASKS)
def test_no_question_is_asked_twice(task):
    requests = [str(task.request(item)) for item in task.items]
    assert len(set(requests)) == len(requests)


def test_another_process_asks_the_same_and_imports_no_torch():
    program = PRINT_FINGERPRINTS.format(tests=str(Path(__file__).parent))
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == fingerprints()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_suites_use_the_public_api_and_the_builders_alone(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    for name in imported:
        assert name in ("capcheck", "functools", "pytest") or name.startswith("capcheck.tasks.")


@each({n: t for n, t in TASKS.items() if not isinstance(t, Perplexity)})
def test_prompts_are_for_base_models(task):
    for item in task.items:
        prompt = task.prompt_of(item)
        assert prompt == prompt.strip()
        assert prompt.endswith(":")


@each(GENERATIONS)
def test_answers_are_short_and_end_with_their_line(task):
    assert task.max_tokens <= 48
    assert task.stop == ("\n",)


@each(GENERATIONS)
def test_a_perfect_model_has_everything_right(task):
    assert mean(task, right) == 1.0


@each(GENERATIONS)
def test_an_empty_answer_scores_nothing(task):
    for text in ("", " ", "\t", "."):
        assert mean(task, lambda item, text=text: text) == 0.0


@each(GENERATIONS)
def test_the_prompt_earns_nothing(task):
    assert mean(task, task.prompt_of) == 0.0
    assert mean(task, lambda item: item.get("passage", item.get("document", ""))) <= 0.01
    assert mean(task, lambda item: item.get("question", "")) == 0.0


@each(GENERATIONS)
def test_the_answer_of_another_item_earns_next_to_nothing(task):
    items = task.items
    other = {item.id: right(items[i - 1]) for i, item in enumerate(items)}
    assert mean(task, lambda item: other[item.id]) <= 0.06


@each(GENERATIONS)
def test_one_answer_for_everything_earns_little(task):
    for answer in {right(item) for item in task.items[:10]}:
        assert mean(task, lambda item, answer=answer: answer) <= 0.1


@each({n: t for n, t in GENERATIONS.items() if "summaries" not in n})
def test_a_list_of_candidates_is_no_answer(task):
    def listed(item):
        others = item.get("others") or [c for c in item.get("choices", []) if c != item["answer"]]
        return " " + ", ".join([*(others or ["lamps"]), item["answer"]])

    assert mean(task, listed) == 0.0


@each({n: t for n, t in TASKS.items() if isinstance(t, Choices)})
def test_choices_that_cannot_be_told_apart_score_nothing(task):
    for item in task.items:
        reply = {"nats": [0.0] * 4, "tokens": [1] * 4}
        assert task.score(item, reply).value == 0.0
        assert task.chance(item) == 0.25


@each({n: t for n, t in TASKS.items() if isinstance(t, Choices)})
def test_the_longest_or_shortest_choice_is_not_the_right_one_too_often(task):
    def share(pick):
        return sum(pick(i["choices"], key=len) == i["answer"] for i in task.items) / len(task.items)

    assert share(max) < 0.4
    assert share(min) < 0.4


def test_closed_book_and_open_book_ask_the_same_questions():
    suite = MODULES["test_retrieval"]
    closed, opened = suite.closed_book.items, suite.open_book.items
    assert [i["question"] for i in closed] == [i["question"] for i in opened]
    for item in opened:
        assert item["passage"] in suite.open_book.prompt_of(item)
        assert item["passage"] not in suite.closed_book.prompt_of(item)


def test_free_answers_and_choices_ask_the_same_questions():
    suite = MODULES["test_factual_qa"]
    free, among = suite.facts, suite.among_four
    assert [free.prompt_of(i) for i in free.items] == [among.prompt_of(i) for i in among.items]


def test_what_one_suite_asked_another_need_not_ask_again():
    def requests(task):
        return {str(task.request(item)) for item in task.items}

    facts = requests(MODULES["test_factual_qa"].facts)
    assert requests(MODULES["test_knowledge_nm"].knowledge) <= facts
    assert requests(MODULES["test_retrieval"].closed_book) <= facts


class Asked:
    """Evidence that lets every claim hold, and keeps it."""

    def __init__(self, task, claims):
        self.task, self.claims = task, claims

    def decide(self, claim: Claim) -> bool:
        self.claims.append((self.task.name, str(claim)))
        return True


class Capability:
    """What the fixture offers, without models."""

    def __init__(self, recipe, context=10_000, kept=2):
        self.recipe = Recipe.parse(recipe)
        self.context = context
        self.kept = kept
        self.claims, self.against = [], []

    def __call__(self, task, *, against=None):
        self.against.append(against)
        return Comparison(task, str(self.recipe), Asked(task, self.claims))

    @property
    def perplexity(self):
        return self(next(tasks_of(MODULES["test_perplexity"])))

    def tokens(self, text):
        return len(text.split())

    def max_kept(self, m):
        return {"layer": self.kept}


def test_knowledge_is_set_beside_the_unstructured_recipe():
    suite = MODULES["test_knowledge_nm"]
    capability = Capability("wanda:2:4+rtn:4")
    pattern = capability.recipe.pattern
    suite.test_pattern_is_in_the_weights(capability, pattern)
    suite.test_knowledge(capability, pattern)
    suite.test_knowledge_beside_unstructured(capability, pattern)
    assert capability.against == [None, "wanda:0.5+rtn:4"]
    assert len(capability.claims) == 2


@pytest.mark.parametrize("kept", [3, 4])
def test_a_pattern_that_is_not_in_the_weights_fails(kept):
    capability = Capability("wanda:2:4", kept=kept)
    with pytest.raises(AssertionError):
        MODULES["test_knowledge_nm"].test_pattern_is_in_the_weights(
            capability, capability.recipe.pattern
        )


def test_a_model_with_too_short_a_context_is_skipped_with_the_reason():
    suite = MODULES["test_long_context"]
    capability = Capability("wanda:0.5", context=400)
    suite.test_needle(capability, 256)
    with pytest.raises(pytest.skip.Exception, match=r"needle_512: .* context of 400"):
        suite.test_needle(capability, 512)
    assert capability.claims == [("needle_256", "retention >= 0.95")]


def test_the_suites_fit_into_256_words_but_for_long_contexts():
    for name, task in GENERATIONS.items():
        if "needle" not in name:
            assert max(len(task.prompt_of(item).split()) for item in task.items) <= 150


@pytest.mark.parametrize(
    ("stem", "name", "arguments"),
    [
        ("test_factual_qa", "test_free_answers", ["head"]),
        ("test_factual_qa", "test_choices", ["tail"]),
        ("test_perplexity", "test_perplexity", []),
        ("test_perplexity", "test_perplexity_of_facts", []),
        ("test_retrieval", "test_closed_book", []),
        ("test_retrieval", "test_open_book", [MODULES["test_retrieval"].open_book]),
        ("test_summarization", "test_faithful_summaries", []),
        ("test_long_context", "test_needle", [128]),
    ],
)
def test_every_check_is_a_gate(stem, name, arguments):
    capability = Capability("rtn:8")
    getattr(MODULES[stem], name)(capability, *arguments)
    assert len(capability.claims) == 1
