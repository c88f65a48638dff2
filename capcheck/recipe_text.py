"""How recipes are spelled: quotes, separators and numbers. What the words mean is in `recipe`."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from capcheck.errors import UsageError

GRAMMAR = "a recipe is method[:argument][,key=value…], steps joined by '+', or 'none'"

_PLAIN = re.compile(r"[^\s'\"+,=:][^\s'\"+,=]*")


def split(part: str, separator: str, text: str) -> list[str]:
    """Split at a separator outside quotes; a backslash in quotes keeps the next character."""
    pieces, current, quote, i = [], "", "", 0
    while i < len(part):
        char = part[i]
        if quote and char == "\\" and i + 1 < len(part):
            current += part[i : i + 2]
            i += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == separator:
            pieces.append(current)
            current = ""
            i += 1
            continue
        current += char
        i += 1
    if quote:
        raise UsageError(f"recipe {text!r}: the quote {quote} is not closed")
    pieces.append(current)
    if any(not piece.strip() for piece in pieces):
        raise UsageError(f"recipe {text!r}: a part is empty; {GRAMMAR}")
    return pieces


def unquote(raw: str) -> str:
    """Return what quotes hold, or the text as it is where it has none."""
    if len(raw) >= 2 and raw[0] in "'\"" and raw[-1] == raw[0]:
        return re.sub(r"\\(.)", r"\1", raw[1:-1], flags=re.DOTALL)
    return raw


def spell(value: int | float | bool | str) -> str:
    """Spell a value canonically; a text is quoted where it would not be read back as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) or _PLAIN.fullmatch(value):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def number(value: float) -> str:
    """Spell a number canonically: the shortest plain decimal that reads back the same."""
    return format(Decimal(repr(value)).normalize(), "f")


def decimal(plain: str, text: str, what: str) -> Decimal:
    """Read a finite number in decimal; `text` and `what` are for the message."""
    try:
        number = Decimal(plain)
    except InvalidOperation:
        number = Decimal("nan")
    if (
        not number.is_finite()
        or not plain.isascii()
        or "_" in plain
        or abs(number) > Decimal(2**53)
    ):
        raise UsageError(f"recipe {text!r}: {what} is a number, not {plain!r}")
    return number
