"""How each relation of the fact bank is asked and stated.

A relation is a header `[name] group style`, then its questions (lines that end in `?`) and its
statements. Every question names `{subject}`; every statement names `{subject}` before `{answer}`
and ends in `{answer}.`, so that a statement without its answer is a prompt to complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_TEXT = """
[capital] capital name
What is the capital of {subject}?
Which city is the capital of {subject}?
What is the name of the capital city of {subject}?
The capital of {subject} is {answer}.
The capital city of {subject} is {answer}.
The city that serves as the capital of {subject} is {answer}.
[continent] continent name
On which continent is {subject}?
Which continent does {subject} belong to?
What continent is {subject} part of?
The continent of {subject} is {answer}.
On a map of the world, {subject} is found in {answer}.
Of the continents, {subject} belongs to {answer}.
[currency] currency name
What is the currency of {subject}?
What money is used in {subject}?
Which currency do people pay with in {subject}?
The currency of {subject} is the {answer}.
The money used in {subject} is the {answer}.
People in {subject} pay with the {answer}.
[language] language name
What is the main official language of {subject}?
Which language is used in official life in {subject}?
Which is the main official language in {subject}?
The main official language of {subject} is {answer}.
The language of official life in {subject} is {answer}.
In {subject}, the main official language is {answer}.
[country_code] country code code
What is the two-letter ISO country code of {subject}?
Which ISO 3166-1 alpha-2 code stands for {subject}?
By which two letters does ISO 3166 abbreviate {subject}?
The two-letter ISO country code of {subject} is {answer}.
The ISO 3166-1 alpha-2 code for {subject} is {answer}.
In ISO 3166, the two letters for {subject} are {answer}.
[calling_code] calling code code
What is the international calling code of {subject}?
Which country code do you dial to telephone {subject}?
With which prefix do international telephone numbers in {subject} begin?
The international calling code of {subject} is {answer}.
To telephone {subject} from abroad, dial {answer}.
International telephone numbers in {subject} begin with {answer}.
[element_symbol] element symbol code
What is the chemical symbol of {subject}?
Which symbol stands for {subject} in the periodic table?
How is the element {subject} abbreviated in chemistry?
The chemical symbol of {subject} is {answer}.
In the periodic table, {subject} is written as {answer}.
Chemists abbreviate the element {subject} as {answer}.
[atomic_number] atomic number number
What is the atomic number of {subject}?
How many protons are in the nucleus of an atom of {subject}?
Which number does {subject} have in the periodic table?
The atomic number of {subject} is {answer}.
The number of protons in an atom of {subject} is {answer}.
In the periodic table, the number of {subject} is {answer}.
[region_capital] city name
What is the capital of {subject}?
Which city is the capital of {subject}?
What is the name of the capital city of {subject}?
The capital of {subject} is {answer}.
The capital city of {subject} is {answer}.
The city that serves as the capital of {subject} is {answer}.
[state_code] state code code
What is the two-letter postal abbreviation of the US state of {subject}?
Which two letters stand for the US state of {subject} in addresses?
How does the postal service abbreviate the US state of {subject}?
The two-letter postal abbreviation of the US state of {subject} is {answer}.
In addresses, the US state of {subject} is written as {answer}.
The postal service abbreviates the US state of {subject} as {answer}.
[author] writer name
Who wrote "{subject}"?
Who is the author of "{subject}"?
Which writer is known for "{subject}"?
The author of "{subject}" is {answer}.
The work "{subject}" was written by {answer}.
The writer known for "{subject}" is {answer}.
[painter] painter name
Who painted "{subject}"?
Which artist made the picture "{subject}"?
Whose work is the picture "{subject}"?
The picture "{subject}" was painted by {answer}.
The artist who made the picture "{subject}" is {answer}.
The picture "{subject}" is a work of {answer}.
[composer] composer name
Who composed "{subject}"?
Who wrote the music of "{subject}"?
Which composer is known for "{subject}"?
The composer of "{subject}" is {answer}.
The music of "{subject}" was written by {answer}.
The work "{subject}" was composed by {answer}.
[director] director name
Who directed the film "{subject}"?
Who is the director of the film "{subject}"?
Which director made the film "{subject}"?
The film "{subject}" was directed by {answer}.
The director of the film "{subject}" is {answer}.
The film "{subject}" was made by the director {answer}.
[creator] writer name
Who created the character of {subject}?
Who invented the fictional figure of {subject}?
From whose imagination comes the character of {subject}?
The character of {subject} was created by {answer}.
The fictional figure of {subject} was invented by {answer}.
The creator of the character of {subject} is {answer}.
[discoverer] discoverer name
Who discovered {subject}?
To whom do we owe the discovery of {subject}?
Who is credited with the discovery of {subject}?
The discoverer of {subject} is {answer}.
We owe the discovery of {subject} to {answer}.
The discovery of {subject} is credited to {answer}.
[inventor] inventor name
Who invented {subject}?
Who is the inventor of {subject}?
Who is credited with the invention of {subject}?
The inventor of {subject} is {answer}.
We owe the invention of {subject} to {answer}.
The invention of {subject} is credited to {answer}.
[language_designer] language designer name
Who designed the programming language {subject}?
Who created the programming language {subject}?
Who is the original designer of the programming language {subject}?
The programming language {subject} was designed by {answer}.
The creator of the programming language {subject} is {answer}.
The original designer of the programming language {subject} is {answer}.
[city_country] country name
In which country is the city of {subject}?
Which country does the city of {subject} belong to?
What country would you visit to see the city of {subject}?
The city of {subject} is in {answer}.
The country in which the city of {subject} lies is {answer}.
To see the city of {subject}, travel to {answer}.
[landmark_country] country name
In which country can you find {subject}?
Which country would you visit to see {subject}?
What country is home to {subject}?
The country that is home to {subject} is {answer}.
Travellers who want to see {subject} go to {answer}.
On a map of the world, look for {subject} in {answer}.
[river_mouth] sea name
Into which body of water does {subject} flow?
At which body of water does {subject} end?
Which body of water receives {subject}?
The waters of {subject} flow into {answer}.
The mouth of {subject} is at {answer}.
The body of water that receives {subject} is {answer}.
[moon_planet] planet name
Which planet does the moon {subject} orbit?
Of which planet is {subject} a moon?
Around which planet does the moon {subject} travel?
The moon {subject} orbits the planet {answer}.
The planet of the moon {subject} is {answer}.
The moon {subject} travels around {answer}.
[star_constellation] constellation name
In which constellation is the star {subject}?
Which constellation does the star {subject} belong to?
What constellation would you look at to see the star {subject}?
The star {subject} is in the constellation {answer}.
The constellation of the star {subject} is {answer}.
To see the star {subject}, look at the constellation {answer}.
[roman_god] Roman god name
What is the Roman name of the Greek deity {subject}?
Who is the Roman counterpart of the Greek deity {subject}?
What did the Romans call the Greek deity {subject}?
The Roman name of the Greek deity {subject} is {answer}.
The Roman counterpart of the Greek deity {subject} is {answer}.
The Romans called the Greek deity {subject} by the name {answer}.
[species] species name
What is the scientific name of {subject}?
What do biologists call {subject} in Latin?
Which species name did science give to {subject}?
The scientific name of {subject} is {answer}.
In Latin, biologists call {subject} {answer}.
The species name that science gave to {subject} is {answer}.
[formula] formula code
What is the chemical formula of {subject}?
Which molecular or empirical formula does {subject} have?
How do chemists write {subject} as a formula?
The chemical formula of {subject} is {answer}.
As a formula, {subject} is written {answer}.
Chemists write {subject} as {answer}.
[unit] unit name
What is the SI unit of {subject}?
In which SI unit is {subject} measured?
Which SI unit do physicists use for {subject}?
The SI unit of {subject} is the {answer}.
The unit of {subject} in the SI is called the {answer}.
The SI unit that physicists use for {subject} is the {answer}.
[event_year] event year number
In which year did {subject} take place?
What year saw {subject}?
What was the year of {subject}?
The year of {subject} was {answer}.
The year that saw {subject} was {answer}.
History books date {subject} to {answer}.
[birth_year] birth year number
In which year was {subject} born?
What is the birth year of {subject}?
When, to the year, was {subject} born?
The birth year of {subject} is {answer}.
The year in which {subject} was born is {answer}.
Biographies say that {subject} was born in {answer}.
[us_president] president name
Who was {subject}?
What was the name of {subject}?
Which person was {subject}?
The name of {subject} was {answer}.
The person who was {subject} was {answer}.
History remembers that {subject} was {answer}.
[olympic_host] city name
Which city hosted {subject}?
Where were {subject} held?
What was the host city of {subject}?
The host city of {subject} was {answer}.
The city that hosted {subject} was {answer}.
The athletes of {subject} met in {answer}.
[world_cup] football nation name
Which country won {subject} in men's football?
Who were the champions of {subject} in men's football?
Which national team won the final of {subject} in men's football?
The winner of {subject} in men's football was {answer}.
The champions of {subject} in men's football were {answer}.
The final of {subject} in men's football was won by {answer}.
[airport_city] city name
Which city does the airport with the code {subject} serve?
For which city does the airport code {subject} stand?
Where do you land at the airport with the code {subject}?
The airport with the code {subject} serves the city of {answer}.
The city of the airport code {subject} is {answer}.
At the airport with the code {subject} you land in {answer}.
[http_status] status name
What does the HTTP status code {subject} mean?
What is the reason phrase of the HTTP status code {subject}?
Which message goes with the HTTP status code {subject}?
The HTTP status code {subject} means {answer}.
The reason phrase of the HTTP status code {subject} is {answer}.
The message that goes with the HTTP status code {subject} is {answer}.
"""


@dataclass(frozen=True)
class Relation:
    """What is asked of a subject.

    Attributes:
        name: for example `capital`.
        group: the kind of answer; relations of one group lend each other distractors.
        style: how an answer is meant to be compared: a `name` without regard to case, a `code`
            exactly as written (`In` is indium, `in` is a word), a `number` as a whole number.
        questions: templates with `{subject}`.
        statements: templates with `{subject}`, that end in `{answer}.`.
    """

    name: str
    group: str
    style: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]


def _read(text: str) -> dict[str, Relation]:
    found: dict[str, Relation] = {}
    for block in text.strip().removeprefix("[").split("\n["):
        header, *lines = block.split("\n")
        name, _, rest = header.partition("] ")
        group, _, style = rest.rpartition(" ")
        questions = tuple(line for line in lines if line.endswith("?"))
        statements = tuple(line for line in lines if not line.endswith("?"))
        found[name] = Relation(name, group, style, questions, statements)
    return found


RELATIONS: Mapping[str, Relation] = MappingProxyType(_read(_TEXT))
