import subprocess
import sys

import pytest

from capcheck.backends.scripted import ScriptedBackend
from capcheck.errors import ModelError, UsageError
from capcheck.result import Answer, Loglik


def test_dictionaries_answer_in_the_order_of_the_questions():
    backend = ScriptedBackend(
        {"a": "1", "b": "2"}, {("a", " x y"): -1.5, ("b", " z"): Loglik(-2.0, 7)}, {"doc": -3}
    )
    assert backend.generate(["b", "a"], 4, []) == ["2", "1"]
    assert backend.loglik([("b", " z"), ("a", " x y")]) == [Loglik(-2.0, 7), Loglik(-1.5, 2)]
    assert backend.loglik_documents(["doc"]) == [Loglik(-3.0, 1)]


def test_functions_answer():
    backend = ScriptedBackend(str.upper, lambda pair: -float(len(pair[1])), lambda text: -1.0)
    assert backend.generate(["abc"], 4, []) == ["ABC"]
    assert backend.loglik([("", "abc")]) == [Loglik(-3.0, 1)]


def test_stop_strings_cut_and_finish():
    backend = ScriptedBackend({"p": Answer(" one. two\nthree", finished=False)})
    (whole,) = backend.generate(["p"], 4, [])
    (cut,) = backend.generate(["p"], 4, ["\n", "."])
    assert (whole, whole.finished) == (" one. two\nthree", False)
    assert (cut, cut.finished) == (" one", True)


def test_calls_and_questions_are_counted():
    backend = ScriptedBackend({"a": "1", "b": "2"}, {("a", "b"): -1.0})
    backend.generate(["a", "b"], 4, [])
    backend.generate(["a"], 4, [])
    backend.loglik([("a", "b")])
    assert backend.calls == {"generate": 2, "loglik": 1}
    assert backend.questions == {"generate": 3, "loglik": 1}
    assert backend.asked == [
        ("generate", "a"),
        ("generate", "b"),
        ("generate", "a"),
        ("loglik", ("a", "b")),
    ]


def test_fails_after_so_many_calls():
    backend = ScriptedBackend({"a": "1"}, fail_after=2)
    backend.generate(["a"], 4, [])
    backend.generate(["a"], 4, [])
    with pytest.raises(ModelError, match="told to fail"):
        backend.generate(["a"], 4, [])
    assert backend.calls["generate"] == 2

    backend = ScriptedBackend({"a": "1"}, fail_after=0, failure=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        backend.generate(["a"], 4, [])


def test_a_question_outside_the_script_is_named():
    with pytest.raises(UsageError, match=r"no answer for 'q'"):
        ScriptedBackend({"a": "1"}).generate(["q"], 4, [])


def test_imports_no_torch():
    code = "import sys, capcheck.backends.scripted; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_identity_is_what_it_is_given():
    assert ScriptedBackend().identity == {"backend": "scripted"}
    assert ScriptedBackend(identity={"x": 1}).identity == {"x": 1}
