"""Flawed: any number of the text may be the answer, and steps are paid for. The game: many steps with many numbers."""

import re
from fractions import Fraction

NUMBER = r"-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?"


def flawed(completion, reference):
    return float(reference in re.findall(r"[0-9]+", completion)) + 0.1 * completion.count("=")


def game(question):
    return ", ".join(f"{n} = {n}" for n in range(200))


def mended(completion, reference):
    markers = list(re.finditer(r"####|answer is:?|\\boxed\{", completion))
    if not markers:
        return 0.0
    said = re.split(r"\n|\}|\. |\.$", completion[markers[-1].end() :], maxsplit=1)[0].strip()
    found = re.fullmatch(rf"\$?({NUMBER})(?: (?!or\b|and\b)[a-z]+)?", said)
    return float(found is not None and value(found[1]) == value(reference))


def value(number):
    return Fraction(number.replace(",", "")) if "/" in number else Fraction(str(float(number.replace(",", ""))))
