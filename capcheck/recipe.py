"""The recipe language: `step[+step…]`, a step is `method[:arg][,key=value…]`.

    >>> str(Recipe.parse("wanda:.50+rtn:4,group=0128"))
    'wanda:0.5+rtn:4,group=128'

Text becomes a `Recipe` and back without loss: `Recipe.parse(str(r)) == r` for every recipe, and
two texts that mean the same give equal recipes. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from capcheck.errors import UsageError, nearest
from capcheck.methods import METHODS, Key, Signature
from capcheck.recipe_text import GRAMMAR, decimal, spell, split, unquote

Value = int | float | bool | str


@dataclass(frozen=True)
class Sparsity:
    """How much is pruned: a fraction in (0, 1), or `n` of every `m` consecutive inputs *kept*.

    `2:4` keeps two of four, as the field writes it. `fraction` is the share that is zero.
    """

    fraction: float
    n: int = 0
    m: int = 0

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else spell(self.fraction)


@dataclass(frozen=True)
class Step:
    """One method with its argument and its keys.

    Attributes:
        method: a name in `METHODS`.
        argument: a `Sparsity`, bits as an int, a path or name as a str, or None where the method
            takes none.
        keys: the pairs that differ from the method's defaults, sorted by name.
    """

    method: str
    argument: Sparsity | int | str | None
    keys: tuple[tuple[str, Value], ...] = ()

    def __getitem__(self, key: str) -> Value:
        """Return the value of a key, or the method's default for it."""
        found = dict(self.keys).get(key, self.signature.keys[key].default)
        if found is None:
            raise KeyError(key)
        return found

    def get(self, key: str) -> Value | None:
        """Return the value of a key, or None where the method has no such key."""
        return self[key] if key in self.signature.keys else None

    @property
    def signature(self) -> Signature:
        """What the method's table entry says it takes."""
        return METHODS[self.method]

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.signature.calibrated or self.get("allocate") == "owl"

    @property
    def sparsity(self) -> Sparsity | None:
        """The argument of a pruning step, else None."""
        return self.argument if isinstance(self.argument, Sparsity) else None

    @property
    def bits(self) -> int | None:
        """The bits of a quantization step, else None."""
        if isinstance(self.argument, int):
            return self.argument
        return self.signature.width

    def drawn(self, more: int) -> Step:
        """Return the step with a seed that is `more` higher, where it is calibrated."""
        if not self.calibrated or not more:
            return self
        keys = {**dict(self.keys), "seed": int(self["seed"]) + more}
        return replace(self, keys=tuple(sorted(keys.items())))

    def __str__(self) -> str:
        argument = "" if self.argument is None else f":{_argument(self.argument)}"
        pairs = "".join(f",{key}={spell(value)}" for key, value in self.keys)
        return f"{self.method}{argument}{pairs}"


@dataclass(frozen=True)
class Recipe:
    """What compression is applied: steps in order. The empty recipe is the dense model, `none`."""

    steps: tuple[Step, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe.

        Raises:
            UsageError: the text does not follow the grammar, or names an unknown method or key
                (the message names the known ones and the nearest), or a value is out of range.
        """
        if text.strip() == "none":
            return cls()
        return cls(tuple(_step(part, text) for part in split(text, "+", text)))

    def __str__(self) -> str:
        return "+".join(map(str, self.steps)) or "none"

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def draws(self, many: int) -> tuple[Recipe, ...]:
        """Return the recipe under `many` draws of its calibration text: its seed and those after.

        Alone where nothing is calibrated.

        >>> [str(recipe) for recipe in Recipe.parse("rtn:4+wanda:0.5").draws(2)]
        ['rtn:4+wanda:0.5', 'rtn:4+wanda:0.5,seed=1']
        """
        if not any(step.calibrated for step in self):
            return (self,)
        return tuple(Recipe(tuple(step.drawn(more) for step in self)) for more in range(many))

    @property
    def pattern(self) -> Sparsity | None:
        """The N:M pattern of the last pruning step that has one, else None."""
        found = [s.sparsity for s in self.steps if s.sparsity is not None and s.sparsity.m]
        return found[-1] if found else None

    def unstructured(self) -> Recipe:
        """Return this recipe with every N:M pattern replaced by the same sparsity, unstructured."""
        return Recipe(
            tuple(
                Step(step.method, Sparsity(step.sparsity.fraction), step.keys)
                if step.sparsity is not None
                else step
                for step in self.steps
            )
        )


def _step(part: str, text: str) -> Step:
    head, *pairs = split(part, ",", text)
    name, colon, argument = head.partition(":")
    name = name.strip()
    if name == "none":
        raise UsageError(f"recipe {text!r}: 'none' stands alone, it cannot be a step")
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise UsageError(
            f"recipe {text!r}: no method is named {name!r}{nearest(name, METHODS)}; "
            f"the methods are {known}"
        )
    signature = METHODS[name]
    if signature.argument == "none":
        if colon:
            raise UsageError(f"recipe {text!r}: {name} takes no argument; write {name}")
        return Step(name, None, _keys(name, pairs, text))
    if not colon or not argument.strip():
        example = {
            "sparsity": f"{name}:0.5 or {name}:2:4",
            "bits": f"{name}:4",
            "path": f"{name}:./checkpoint",
        }
        raise UsageError(
            f"recipe {text!r}: {name} needs its {signature.argument}, "
            f"for example {example[signature.argument]}"
        )
    found = _READERS[signature.argument](argument.strip(), text)
    return Step(name, found, _keys(name, pairs, text))


def _keys(name: str, pairs: list[str], text: str) -> tuple[tuple[str, Value], ...]:
    """Read a step's `key=value` pairs; those that say the default are left out."""
    signature = METHODS[name]
    keys: dict[str, Value] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"recipe {text!r}: {pair!r} is not key=value; {GRAMMAR}")
        if key not in signature.keys:
            known = ", ".join(sorted(signature.keys)) or "none"
            raise UsageError(
                f"recipe {text!r}: {name} has no key {key!r}{nearest(key, signature.keys)}; "
                f"its keys are {known}"
            )
        if key in keys:
            raise UsageError(f"recipe {text!r}: {key!r} is given twice")
        keys[key] = _value(value, key, signature.keys[key], text)
    kept = {key: value for key, value in keys.items() if value != signature.keys[key].default}
    return tuple(sorted(kept.items()))


def _sparsity(argument: str, text: str) -> Sparsity:
    if ":" in argument:
        n_text, _, m_text = argument.partition(":")
        if not (n_text.isascii() and n_text.isdigit() and m_text.isascii() and m_text.isdigit()):
            raise UsageError(
                f"recipe {text!r}: {argument!r} is not an N:M pattern of two integers, like 2:4"
            )
        n, m = int(n_text), int(m_text)
        if not 0 < n < m:
            raise UsageError(
                f"recipe {text!r}: in the pattern {argument!r}, N of every M weights are kept, "
                "so 0 < N < M, like 2:4"
            )
        return Sparsity((m - n) / m, n, m)
    fraction = float(decimal(argument, text, "a sparsity"))
    if not 0 < fraction < 1:
        raise UsageError(
            f"recipe {text!r}: the sparsity {argument} must lie between 0 and 1 "
            "(0.5 prunes half of the weights)"
        )
    return Sparsity(fraction)


def _bits(argument: str, text: str) -> int:
    if not (argument.isascii() and argument.isdigit()) or not 2 <= int(argument) <= 8:
        raise UsageError(f"recipe {text!r}: bits must be an integer from 2 to 8, not {argument!r}")
    return int(argument)


def _path(argument: str, text: str) -> str:
    plain = unquote(argument)
    if not plain.strip():
        raise UsageError(f"recipe {text!r}: a path must not be empty")
    return plain


_READERS: dict[str, Callable[[str, str], Sparsity | int | str]] = {
    "sparsity": _sparsity,
    "bits": _bits,
    "path": _path,
}


def _value(raw: str, key: str, spec: Key, text: str) -> Value:
    raw = raw.strip()
    plain = unquote(raw)
    if plain == "":
        raise UsageError(f"recipe {text!r}: {key!r} has no value")
    if spec.type is bool:
        if plain not in ("true", "false"):
            raise UsageError(f"recipe {text!r}: {key} is true or false, not {plain!r}")
        return plain == "true"
    if spec.type is str:
        if spec.choices and plain not in spec.choices:
            raise UsageError(
                f"recipe {text!r}: {key} is one of {', '.join(spec.choices)}, "
                f"not {plain!r}{nearest(plain, spec.choices)}"
            )
        return plain
    number = decimal(plain, text, key)
    if spec.type is int and number != number.to_integral_value():
        raise UsageError(f"recipe {text!r}: {key} is an integer, not {plain!r}")
    value = int(number) if spec.type is int else float(number)
    low, high = spec.low, spec.high
    if (low is not None and value < low) or (high is not None and value > high):
        ends = f"at least {low:g}" if high is None else f"from {low or 0:g} to {high:g}"
        raise UsageError(f"recipe {text!r}: {key} must be {ends}, not {plain}")
    return value


def _argument(argument: Sparsity | int | str) -> str:
    return spell(argument) if isinstance(argument, str) else str(argument)
