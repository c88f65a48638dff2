"""Tasks as values: prompts, filters, fingerprints; and the decorator that makes one."""

import subprocess
import sys

import pytest

from capcheck import UsageError, choices, generation, task
from capcheck.task import Task
from capcheck.tasks.generation import Generation

ROWS = [
    {"prompt": "one", "answer": "1", "lang": "de", "level": 1},
    {"prompt": "two", "answer": "2", "lang": "fr", "level": 1},
    {"prompt": "three", "answer": "3", "lang": "fr", "level": 2},
]


def made(rows=ROWS, **settings):
    return generation(rows, name="numbers", answers="answer", **settings)


@pytest.mark.parametrize(
    "first", ["import capcheck.task", "from capcheck import Task", "import capcheck.tasks.choices"]
)
def test_the_decorator_is_not_hidden_by_the_module_of_its_name(first):
    program = (
        f"{first}\nfrom capcheck import task\n@task(items=[{{'prompt': 'p'}}])\ndef f(i, a): 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_prompt_is_header_and_template():
    numbers = made(header="Count.\n", prompt="{prompt} ({lang}):")
    assert numbers.prompt_of(numbers.items[1]) == "Count.\ntwo (fr):"


def test_prompt_may_be_a_function_of_the_row():
    numbers = made(prompt=lambda row: row["prompt"].upper())
    assert [numbers.prompt_of(item) for item in numbers.items] == ["ONE", "TWO", "THREE"]


def test_braces_in_a_row_are_text():
    numbers = made([{"prompt": "{x} {", "answer": "1"}])
    assert numbers.prompt_of(numbers.items[0]) == "{x} {"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("{promt}", "'promt'"),
        ("{prompt} {", "the prompt"),
        ('{"q": {prompt}}', "the prompt"),
        ("{prompt.upper.no}", "the prompt"),
        ("{prompt:d}", "the prompt"),
        ("{prompt[a]}", "the prompt"),
        ("{}", "the prompt"),
        (lambda row: None, "its prompt function gave no text"),
    ],
)
def test_a_prompt_that_does_not_fit_the_row_is_a_usage_error(prompt, says):
    with pytest.raises(UsageError, match=r"task 'numbers'.*item 0") as raised:
        _ = made(prompt=prompt).items
    assert says in str(raised.value)


def test_where_keeps_the_items_with_these_values():
    assert [item["prompt"] for item in made().where(lang="fr").items] == ["two", "three"]
    assert [item["prompt"] for item in made().where(lang="fr", level=2).items] == ["three"]
    assert [item["prompt"] for item in made().where(lang="fr").where(level=1).items] == ["two"]


def test_where_keeps_ids_and_kind_and_names_the_part():
    french = made().where(lang="fr")
    assert isinstance(french, Generation)
    assert french.name == "numbers-fr"
    assert [item.id for item in french.items] == ["1", "2"]
    assert made().name == "numbers"


def test_where_without_a_match_says_which_values_exist():
    with pytest.raises(UsageError, match=r"no item where lang='it'.*'fr' \(2\), 'de' \(1\)"):
        _ = made().where(lang="it").items


def test_where_with_an_unknown_field_says_which_fields_exist():
    with pytest.raises(UsageError, match=r"no item has a field 'language'.*prompt, answer, lang"):
        _ = made().where(language="fr").items


def test_where_with_values_that_never_meet_says_so():
    with pytest.raises(UsageError, match="all at once"):
        _ = made().where(lang="de", level=2).items


def test_where_asks_nothing_of_the_source_before_items_are_read():
    def rows():
        raise AssertionError("read too early")

    made(rows).where(lang="fr")


def test_fingerprint_is_of_what_is_asked():
    same = made([dict(reversed(row.items())) for row in ROWS])
    assert made().fingerprint == same.fingerprint
    assert made().fingerprint != made(max_tokens=33).fingerprint
    assert made().fingerprint != made(header="h").fingerprint
    assert made().fingerprint != made(stop=("\n", ".")).fingerprint
    assert made().fingerprint != made(ROWS[:2]).fingerprint
    assert made().fingerprint != made(ROWS[::-1]).fingerprint


def test_fingerprint_is_the_same_in_another_process():
    program = (
        "from capcheck import choices; "
        "print(choices([{'prompt': 'p', 'choices': ['a', 'b'], 'answer': 1}]).fingerprint)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in "12"
    }
    assert seen == {choices([{"prompt": "p", "choices": ["a", "b"], "answer": 1}]).fingerprint}


def test_items_are_read_once():
    reads = []

    def rows():
        reads.append(1)
        return ROWS

    numbers = made(rows)
    assert numbers.items is numbers.items
    assert len(reads) == 1


def test_an_item_says_which_fields_it_has():
    item = made().items[0]
    assert item["lang"] == "de"
    assert item.get("colour") is None
    assert "lang" in item
    with pytest.raises(KeyError, match=r"did you mean 'lang'"):
        item["lng"]


def test_a_decorated_scorer_is_a_task_with_its_name():
    @task(items=ROWS, max_tokens=5)
    def digits(item, answer):
        return item["answer"] in answer

    assert isinstance(digits, Task)
    assert digits.name == "digits"
    assert digits.max_tokens == 5
    assert digits.score(digits.items[0], {"text": "it is 1", "finished": True}).value == 1.0
    assert digits.where(lang="fr").name == "digits-fr"


def test_a_cluster_that_no_row_names_is_an_error_and_not_one_large_cluster():
    with pytest.raises(UsageError, match=r"item 2: it has no field 'page' to be grouped by"):
        _ = made([{**ROWS[0], "page": 1}, {**ROWS[1], "page": 1}, ROWS[2]], cluster="page").items
