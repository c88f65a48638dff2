"""Invented names and closed word lists: everything that the generated texts are made of.

The texts of the bundled suites share no name with the texts that are for training and calibration,
yet both are spelled with the same pieces. A name is a beginning and an ending (`Tam` + `orin`); the
beginning number i with the ending number j belongs to the suites where i + j is divisible by four,
and to training else. So every piece occurs on both sides, and a tokenizer that knows the names of
one side can spell those of the other. Ordinary words (jobs, colours, ...) are shared.

All texts come from `stream`, whose seed holds the split: equal numbers give the two sides different
texts. Nothing depends on `hash()`, so on nothing that differs between two processes.
"""

from __future__ import annotations

import random
from typing import Literal

Split = Literal["suite", "train"]


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a list that is written as text."""
    return tuple(text.split())


_PEOPLE = (
    "Bel Dov Fen Gar Hal Ilv Jor Kel Lud Mav Nol Orv Pel Quin Ros Sel Tam Tib Vel Wen Yar Zev",
    "a adine ath ek eline en ero eth id ina ith ola ona orin osh ova ula uma un usk",
)
_PLACES = (
    "Ash Bram Cor Dun Elm Farn Glen Hark Inch Kirn Lorn Mosk Nar Ock Pry Rusk Stev Thorn Ulm Wex",
    "abey add anmere atch avale eford eham ekirk ellin enbury erwick escar essa imoor ollow oway",
)
_THINGS = (
    "bren cal dre fim gor hux jal krel lop mir nub oxl plin quel rud sarn tov ven yob zan",
    "adel arp ebit eck eron esp ibber idow ilk inter oddle omic oon orrel udge ump",
)

NAME_PIECES = (_PEOPLE, _PLACES, _THINGS)
"""The beginnings and endings of people, places and things, as words of two texts each."""

JOBS = listed(
    "baker carpenter clerk cook dentist doctor driver farmer fisher gardener glazier guard "
    "hunter judge lawyer mason miller miner nurse painter pilot plumber poet porter potter "
    "printer sailor singer smith soldier tailor teacher vet waiter weaver writer"
)
COLOURS = listed(
    "amber black blue bronze brown copper cream crimson golden green grey indigo ivory lilac "
    "maroon olive orange pink purple red scarlet silver turquoise violet white yellow"
)
ANIMALS = listed(
    "badger bear camel cat cow crow deer dog donkey duck falcon ferret fox frog goat goose "
    "hare hen heron horse lizard mouse otter owl parrot pig pigeon pony rabbit raven rooster "
    "seal sheep snail spider squirrel stork swan toad turtle"
)
FOODS = listed(
    "apples bacon beans beets bread butter cabbage cake carrots cheese cherries corn dates eggs "
    "figs grapes ham honey jam leeks lemons lentils melons mushrooms nuts onions oranges peaches "
    "pears peas plums potatoes pumpkin radishes rice soup spinach toast turnips walnuts"
)
TREES = listed("alder ash beech birch cedar chestnut elm fir hazel larch lime maple oak pine rowan")
MATERIALS = listed(
    "brass brick clay cork felt flint glass granite iron leather linen marble oak paper pine "
    "silk slate steel stone straw tin wax wicker wool"
)
WORDS = listed(
    "anchor apron arrow barrel basket bell bench blanket bottle bowl box bridge broom bucket "
    "button candle carpet chain chair clock cloud coat coin comb crown cup curtain desk door "
    "drum feather fence flag flute fork gate glove hammer harp hat helmet hook jacket jar kettle "
    "key kite knife ladder lamp letter lock map mask mirror nail needle nest oven pan pencil "
    "pillow pipe plate pocket purse ribbon ring rope saddle sail saw scarf shelf shield shoe "
    "shovel sock spoon stamp stove sword table tent thread ticket towel tower trumpet trunk "
    "umbrella vase violin wagon wallet wheel whistle window"
)
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SEASONS = ("spring", "summer", "autumn", "winter")
WEATHER = listed("bright calm cloudy cold damp dry foggy frosty hot mild rainy stormy warm windy")


def stream(*parts: object) -> random.Random:
    """Return random numbers that depend on the parts alone, the same in every process.

    >>> stream("prose", 1).random() == stream("prose", 1).random()
    True
    """
    return random.Random("/".join(map(str, parts)))


def articled(text: str) -> str:
    """Write `an` where `a` stands before a vowel: the word after it was drawn, not written.

    >>> articled("It is a owl, not a bat.")
    'It is an owl, not a bat.'
    """
    words = text.split(" ")
    for i, word in enumerate(words[:-1]):
        if word in ("a", "A") and words[i + 1][:1] in tuple("aeiouAEIOU"):
            words[i] = word + "n"
    return " ".join(words)


def people(split: Split) -> list[str]:
    """Return the invented first names of one side: 110 for the suites, 330 for training."""
    return _joined(_PEOPLE, split)


def places(split: Split) -> list[str]:
    """Return the invented names of towns of one side: 80 for the suites, 240 for training."""
    return _joined(_PLACES, split)


def things(split: Split) -> list[str]:
    """Return the invented words for objects of one side: 80 for the suites, 240 for training."""
    return _joined(_THINGS, split)


def _joined(pieces: tuple[str, str], split: Split) -> list[str]:
    if split not in ("suite", "train"):
        raise ValueError(f"split is 'suite' or 'train', not {split!r}")
    beginnings, endings = pieces[0].split(), pieces[1].split()
    return [
        beginning + ending
        for i, beginning in enumerate(beginnings)
        for j, ending in enumerate(endings)
        if ((i + j) % 4 == 0) == (split == "suite")
    ]
