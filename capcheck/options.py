"""The table of options: names, defaults, help, and how each value is read from text.

The plugin's command line, the environment's names, the ini keys and the documentation are all made
from `OPTIONS`. Nothing here imports torch or pytest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capcheck.errors import UsageError, nearest
from capcheck.recipe import Recipe
from capcheck.rows import FILES


@dataclass(frozen=True)
class Option:
    """One option: `--capcheck-NAME`, the environment's CAPCHECK_NAME and the ini key capcheck_NAME.

    Attributes:
        name: with underscores.
        parse: reads the text; raises ValueError with what it expected.
        metavar, default, help: for `--help`; `default` is how the default reads.
        short: also a short form `--NAME`.
        many: may be given more than once.
        path: the value is a path.
        bare: the flag alone, without a value, says `true`.
    """

    name: str
    parse: Callable[[str], Any]
    metavar: str
    default: str
    help: str
    short: bool = False
    many: bool = False
    path: bool = False
    bare: bool = False

    @property
    def flag(self) -> str:
        """The long form on the command line."""
        return "--capcheck-" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The name in the environment."""
        return "CAPCHECK_" + self.name.upper()

    @property
    def ini(self) -> str:
        """The key in the ini file or pyproject."""
        return "capcheck_" + self.name

    def read(self, text: str, where: str) -> Any:
        """Read a value; `where` says whence it came.

        Raises:
            UsageError: it cannot be read; the message names `where` and what was expected.
        """
        try:
            return self.parse(text)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        except ValueError as error:
            raise UsageError(f"{where}={text}: {error}") from None


def _one_of(*known: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"must be one of {', '.join(known)}{nearest(text, known)}")
        return text

    return parse


def _number(low: float, high: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            raise ValueError(f"must be {what}")
        return value

    return parse


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < low:
            raise ValueError(f"must be an integer, at least {low}")
        return int(text)

    return parse


def _integer_or(words: Sequence[str], otherwise: str) -> Callable[[str], int | str]:
    def parse(text: str) -> int | str:
        try:
            return text if text in words else _integer(1)(text)
        except ValueError:
            raise ValueError(f"must be {', '.join(words)}, or {otherwise}") from None

    return parse


def _bytes(text: str) -> int:
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in units or not number.isascii() or not number.isdigit():
        raise ValueError("must be a number of bytes, like 500M or 2G")
    return int(number) * units[unit]


def _boolean(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


def _switch(text: str) -> bool:
    try:
        return _boolean(text)
    except ValueError:
        raise ValueError(
            "must be true or false; write a test path before the option, or the option with '=true'"
        ) from None


def _device(text: str) -> str:
    name, colon, index = text.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (colon and not index.isdigit()):
        raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
    return text


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError("must be a path")
    return Path(text).expanduser()


def _folder(text: str) -> Path:
    path = _path(text)
    if not path.is_dir():
        raise ValueError("there is no such folder")
    return path


def _prose(text: str) -> str:
    if Path(text).suffix not in FILES:
        return _text(text)
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise ValueError("there is no such file")
    return str(path)


def _output(text: str) -> Path:
    path = _path(text).absolute()
    if path.is_dir():
        raise ValueError("this is a folder, and a file is to be written")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError("it cannot be written")
    return path


def _input(text: str) -> Path:
    path = _path(text).absolute()
    if not path.is_file():
        raise ValueError("there is no such file")
    return path


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


OPTIONS: tuple[Option, ...] = (
    Option(
        "model", _text, "NAME[@REVISION]", "none: capability checks are skipped",
        "the dense model: a folder, a hub id, or 'reference'", short=True,
    ),
    Option(
        "compress", Recipe.parse, "RECIPE", "none given",
        "a recipe, method[:arg][,key=value…] joined by '+', or 'none' for the control; "
        "may be repeated, each is one column", short=True, many=True,
    ),
    Option(
        "calibration_seeds", _integer(1), "N", "1",
        "ask every calibrated recipe under N draws of its calibration text, each a column",
    ),
    Option(
        "suite", _text, "NAME", "all of them, where no test path is given",
        "a bundled suite to run, also beside paths, or 'none'; may be repeated",
        short=True, many=True,
    ),
    Option("device", _device, "DEVICE", "auto", "where models run: auto, cpu, cuda, cuda:N, mps"),
    Option(
        "dtype", _one_of("auto", "float32", "bfloat16", "float16"), "DTYPE", "auto",
        "auto (the checkpoint's own on an accelerator, float32 on the CPU), float32, bfloat16, "
        "float16",
    ),
    Option(
        "batch_tokens", _integer_or(("auto",), "the most tokens of a batch"), "auto|N", "auto",
        "tokens in a batch, padding counted: auto (4096, or up to 16384 on a GPU with room for "
        "them; with a baseline its own), or N",
    ),
    Option(
        "trust_remote_code", _boolean, "BOOL", "false",
        "run Python code that comes with the model",
    ),
    Option(
        "chat", _one_of("auto", "on", "off"), "auto|on|off", "auto",
        "send prompts in the tokenizer's chat template: where there is one, always, never",
    ),
    Option(
        "data", _folder, "DIR", "download",
        "read data sets from DIR/<name>/*.jsonl in place of a download", path=True,
    ),
    Option(
        "perplexity", _prose, "TEXT", "own",
        "the text for perplexity: own, a .jsonl or .txt file, or a data set's name",
    ),
    Option(
        "perplexity_tolerance", _number(1.0, math.inf, "a ratio above 1"), "RATIO", "1.05",
        "a perplexity ratio up to this counts as unchanged when silent damage is named",
    ),
    Option(
        "store", _path, "DIR", "the user's cache folder",
        "where replies of models are kept; 'none' keeps them for this run only", path=True,
    ),
    Option("store_limit", _bytes, "SIZE", "1G", "what is used least is dropped above this"),
    Option(
        "confidence", _number(0.5, 1.0, "between 0.5 and 1"), "P", "0.95",
        "each verdict is wrong at most once in 1/(1-P) times",
    ),
    Option(
        "items", _integer_or(("auto", "all"), "the most items to ask"), "auto|all|N", "auto",
        "how many items are asked: as many as a verdict needs, all, or at most N",
    ),
    Option("seed", _integer(0), "N", "0", "the order in which items are asked"),
    Option(
        "time_budget", _number(0.0, math.inf, "a number of seconds above 0"), "SECONDS", "none",
        "after this no further item is asked; open gates are undecided",
    ),
    Option(
        "undecided", _one_of("hold", "fail"), "hold|fail", "hold",
        "what a gate does that too few items leave undecided",
    ),
    Option(
        "vacuous", _one_of("skip", "fail"), "skip|fail", "skip",
        "what a check does whose capability the dense model does not have",
    ),
    Option("json", _output, "FILE", "none", "write the results as JSON", path=True),
    Option(
        "records", _output, "FILE", "none",
        "write every item with both models' answers, a JSON object a line", path=True,
    ),
    Option(
        "save", _path, "DIR", "none",
        "write the compressed model to a new folder if the run ends with code 0; for one recipe",
        path=True,
    ),
    Option(
        "baseline", _input, "FILE", "none",
        "read what the dense model replies from a file, and ask it nothing", path=True,
    ),
    Option(
        "save_baseline", _output, "FILE", "none",
        "ask the dense model every item, and write its replies for another machine", path=True,
    ),
    Option(
        "known_losses", _input, "FILE", "none",
        "degraded gates that are accepted: they fail only where more is lost", path=True,
    ),
    Option(
        "save_known_losses", _output, "FILE", "none",
        "write the degraded gates of this run as known losses", path=True,
    ),
    Option(
        "plan", _switch, "BOOL", "false",
        "ask no model: say what each check would ask, what loss it could find and how long it "
        "would take", bare=True,
    ),
)  # fmt: skip
"""Every option of capcheck."""

OPTION: Mapping[str, Option] = {option.name: option for option in OPTIONS}
