"""Many sequences in few: what sequences begin with alike is written once, each goes on from there.

Sorted, every sequence shares its beginning with the one before it. What is new in it is appended to
the pack, at the positions it would have alone, and reads only what it follows: a tree, written
down branch by branch (the attention of Cai et al. 2024, "Medusa", arXiv 2401.10774, section 3.1.2).
Choices of one item become leaves of one stem, and single letters need no token of their own. No
torch here; `capcheck.backends.scoring` makes tensors of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from capcheck.backends.encoding import Row, common, shared

PACK_TOKENS = 512
"""A pack is closed at about this length: what it holds is computed against all of it."""

STEM_TOKENS = 384
"""A shorter beginning is not read before a group's packs, but with them."""

_LONG = 4096  # tokens of a stem that is read by itself whatever follows it

_CHEAP = PACK_TOKENS // 8  # tokens it is worth computing again to close a pack


@dataclass(frozen=True)
class Scored:
    """What of a pack is scored for one row.

    Attributes:
        row: the row.
        places: the tokens of the pack whose logits are needed.
        targets: the token that follows each of them.
    """

    row: Row
    places: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Pack:
    """Sequences that share what they begin with, as one.

    Attributes:
        ids: the tokens, without those that all sequences of a call begin with.
        positions: the position of each token in its sequence, from 0; they tell the tree.
        scored: the rows.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    def add(self, row: Row, begun: int, follows: list[int]) -> list[int]:
        """Append what is new in a row, behind the first places of the row before it.

        Returns:
            The places of all its tokens.
        """
        at, begin = begun + len(follows), len(self.ids)
        new = row.ids[at:-1]  # the last token is predicted and never read
        self.ids.extend(new)
        self.positions.extend(range(at, at + len(new)))
        path = [*follows, *range(begin, len(self.ids))]
        self.scored.append(Scored(row, path[row.start - 1 - begun :], row.ids[row.start :]))
        return path

    def ends(self) -> list[int]:
        """Return, of each token, the place before which all tokens stand that read it.

        It is read by itself and all that comes after it, until a position as early as its own
        begins another branch.
        """
        found = [len(self.ids)] * len(self.ids)
        path: list[int] = []
        for place, position in enumerate(self.positions):
            while path and self.positions[path[-1]] >= position:
                found[path.pop()] = place
            path.append(place)
        return found


def groups(rows: Sequence[Row], begun: int, least: int) -> list[tuple[int, list[Row]]]:
    """Part rows by long beginnings that some of them share, as the header of a task's questions.

    A mask costs attention its shortcut, half of the work of a plain sequence: a long beginning is
    better read as one, and what follows packed behind it.

    Args:
        rows: sequences that all begin with the same `begun` tokens, none of which is scored.
        begun: how many tokens all begin with.
        least: the fewest distinct tokens of a group that is read by itself.

    Returns:
        How many tokens the rows of a group begin with, and the rows: first the groups, then what
        belongs to none.
    """
    found: list[tuple[int, list[Row]]] = []
    rest: list[Row] = []
    run: list[Row] = []
    # With every stem, what all rows begin with is read again.
    shortest = max(STEM_TOKENS, 8 * begun)
    ordered = sorted(rows, key=lambda row: row.ids)
    for row, after in zip(ordered, [*ordered[1:], None], strict=True):
        run.append(row)
        if after is not None and common(row.ids, after.ids) >= shortest:
            continue
        stem, tokens = shared(run), distinct(run)
        # What is left of an item's choices is too little for a pass, but for a mask of all of it.
        enough = tokens >= max(least, stem + _CHEAP) or stem >= _LONG
        if stem >= shortest and enough:
            found.append((stem, run))
        else:
            rest += run
        run = []
    return [*found, (begun, rest)] if rest else found


def distinct(rows: Sequence[Row]) -> int:
    """Return how many tokens rows have to be read, if what they begin with alike is read once."""
    ordered = sorted(row.ids[:-1] for row in rows)  # the last token is predicted and never read
    alike = sum(common(a, b) for a, b in pairwise(ordered))
    return sum(map(len, ordered)) - alike


def packs(rows: Sequence[Row], begun: int, most: int) -> list[Pack]:
    """Return rows as packs, longest first.

    Args:
        rows: sequences that all begin with the same `begun` tokens, none of which is scored.
        begun: how many tokens were read before.
        most: the most tokens of a pack; a single longer row makes a longer one.
    """
    found: list[Pack] = []
    path: list[int] = []
    before: list[int] = []
    for row in sorted(rows, key=lambda row: row.ids[begun:]):
        ids = row.ids[begun:-1]
        alike = common(before, ids)
        size = len(found[-1].ids) + len(ids) - alike if found else 0
        if not found or size > most or (size > PACK_TOKENS and alike <= _CHEAP):
            found.append(Pack())
            alike = 0
        path = found[-1].add(row, begun, path[:alike])
        before = ids
    return sorted(found, key=lambda pack: -len(pack.ids))
