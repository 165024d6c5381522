"""An endless supply of arithmetic word problems, for runs without a download and for tests.

They are in the spirit of SVAMP (one or two steps, the four operations, numbers that play no part), but every wording
is our own. A problem is a template of data/wordings.py with its slots filled: numbers are drawn until every step gives
a sensible result. There are three splits, and no two share a problem:

    train, test  the wordings of TEMPLATES; a checksum of the question says which of the two a problem belongs to
    wordings     the wordings of HELD_OUT, which train and test never show

test asks for new numbers and names in known wordings, wordings for new wordings: other sentences of the same kinds,
filled from the same lists. A model that is good at the first alone has learned the sentences by heart.
"""

import operator
import random
import re
import zlib
from collections.abc import Iterator

from data.problem import Problem
from data.wordings import BOYS, GIRLS, HELD_OUT, NOUNS, RANGES, TEMPLATES, Template

SIZES = {"train": 4000, "test": 500, "wordings": 500}  # how many problems load() returns

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def work_out(steps: str, numbers: dict[str, int]) -> list[tuple[int, str, int, int]] | None:
    """[(left, operation, right, result), ...], or None where a result is not a whole number from 2 to 999."""
    done: list[tuple[int, str, int, int]] = []
    for step in steps.split(", "):
        left, operation, right = step.split()
        x, y = (done[-1][3] if term == "it" else numbers[term] for term in (left, right))
        if operation == "/" and x % y:
            return None
        result = OPERATIONS[operation](x, y)
        if not 2 <= result <= 999:
            return None
        done.append((x, operation, y, result))
    return done


def draw_words(rng: random.Random) -> dict[str, str]:
    """A filling for every slot that is not a number."""
    person, other, third = rng.sample(GIRLS + BOYS, 3)
    he, him = ("she", "her") if person in GIRLS else ("he", "him")
    words = dict(person=person, other=other, third=third, he=he, He=he.capitalize(), him=him)
    for kind, nouns in NOUNS.items():
        first, second = rng.sample(nouns, 2)
        words |= {kind: first, f"{kind}s": plural(first), f"other_{kind}": second, f"other_{kind}s": plural(second)}
    return words


def draw_problem(rng: random.Random, templates: list[Template]) -> Problem:
    [template] = rng.choices(templates, [1 + template.steps.count(",") for template in templates])  # two steps: twice
    letters = re.findall(r"\{(\w)\}", template.text)
    done = None
    while done is None:
        numbers = {letter: rng.randint(*RANGES[letter]) for letter in letters}
        if len(set(numbers.values())) == len(numbers) and (not template.also or work_out(template.also, numbers)):
            done = work_out(template.steps, numbers)
    answer = str(done[-1][3])
    rationale = ", ".join(f"{x} {operation} {y} = {result}" for x, operation, y, result in done)
    return Problem(template.text.format(**numbers, **draw_words(rng)), answer, f"{rationale} #### {answer}")


def split_of(question: str) -> str:
    """One question of TEMPLATES in ten is for testing. crc32, unlike hash(), is the same on every machine."""
    return "test" if zlib.crc32(question.encode()) % 10 == 0 else "train"


def stream(split: str, seed: int = 0) -> Iterator[Problem]:
    """Endless, and the same for the same seed; a problem may come up again. The module's docstring lists the splits."""
    if split not in SIZES:
        raise ValueError(f"unknown split {split!r} of arith: choose from {', '.join(SIZES)}")
    rng = random.Random(seed)
    while True:
        problem = draw_problem(rng, HELD_OUT if split == "wordings" else TEMPLATES)
        if split in ("wordings", split_of(problem.question)):
            yield problem


def load(split: str) -> list[Problem]:
    """The first distinct problems of stream(split): 4,000 to train on, 500 of each other split."""
    problems: dict[Problem, None] = {}  # a dict keeps the order in which they came
    for problem in stream(split):
        problems[problem] = None
        if len(problems) == SIZES[split]:
            return list(problems)
