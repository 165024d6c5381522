r"""The reward R of a completion (docs/method.md), and first: is the answer that it marks the reference answer?

    is_correct("3 + 4 = 7, so she has 7 apples.\n#### 7 apples", "7")  ->  True
    is_correct(r"so \boxed{\left[\dfrac12, \infty\right)}", r"[0.5,\infty)")  ->  True

`extract_answer` takes the text of the last marker: `#### ...`, `answer is ...`, `\boxed{...}`. A number in running text
is no answer: without this rule a policy is paid for stopping early or for listing numbers. answers.py then reads that
text, and the reference, as values. Two things come of it: *correct*, which accuracy counts, and the *reward*, which the
gradient sees. A completion without an end token is not correct and earns 0, whatever it says.
"""

import math
import re
from contextlib import suppress
from fractions import Fraction

from answers import MAX_CHARACTERS, canonical, plain, unnamed
from units import same_unit

MARKER = re.compile(  # by its first characters, so that what cannot begin a marker is passed over at once
    r"####+|a(?i:nswer is)\b:?|A(?i:nswer is)\b:?|\\(?=[BFbf])(?<![-−]\\)(?i:boxed|fbox) *\{", re.ASCII
)
BEFORE_ANSWER = re.compile(r"(?:[\s:*]|\$\$|\\\[)*")  # "The answer is:", and the answer on a line of its own
LINE_END = re.compile(r"[\r\n]")
SENTENCE_END = re.compile(
    r"(?<!\bMr|\bMs|\bDr|\bSt|\bsq|\bcu|\bfl)(?<!\bMrs)[.!?](?=\s|\Z)(?!\s*[0-9])|,?\s\(?(?:because|since|which)\b"
)
LONG_DECIMAL = re.compile(r"[1-9][0-9]*\.[0-9]{7}|\.0*[1-9][0-9]{6}")  # a computed one: 0.16666666666666666
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ is a printed brace, it groups nothing


def reward(completion: str, correct: bool) -> float:
    """R, what the gradient sees: 1 for a correct completion. Accuracy counts `correct` alone, whatever this pays."""
    return float(correct)


def verdict(completion: str, ended: bool, right: bool) -> dict:
    """Whether a completion is correct, and what it earns.  ended: with an end token.  right: its answer.

    Raises RuntimeError where `reward` fails, ValueError where what it returns is no finite number.
    """
    correct = ended and right
    try:
        earned = reward(completion, correct) if ended else 0.0
    except Exception as error:
        raise RuntimeError("reward() of reward.py failed, see above") from error
    with suppress(TypeError, ValueError, RuntimeError):  # no number
        if math.isfinite(earned):
            return {"correct": correct, "reward": float(earned)}
    raise ValueError(f"reward() of reward.py returned {earned!r} for {completion[:80]!r}; expected a finite number")


def is_correct(completion: str, answer: str) -> bool:
    """Whether the last marker of `completion` holds the reference `answer`: equal as values, see `canonical`."""
    text = extract_answer(completion) or ""
    (given, unit), (expected, its_unit) = canonical(text), canonical(answer)
    if bool(unit) != bool(its_unit) and Fraction in (type(given), type(expected)):  # 5m, where the other says 5 m
        (given, unit), (expected, its_unit) = canonical(text, apart=True), canonical(answer, apart=True)
    if None in (given, expected) or not same_unit(unit, its_unit):
        return False
    if isinstance(given, Fraction) and isinstance(expected, Fraction) and LONG_DECIMAL.search(answer):
        return given == expected or rounds(plain(text), given, plain(answer), expected)
    if isinstance(given, Fraction) and isinstance(expected, tuple):  # 1,10,100 is a list where the other side has one
        given, _ = canonical(text.replace(",", ", "))
    elif isinstance(expected, Fraction) and isinstance(given, tuple):
        expected, _ = canonical(answer.replace(",", ", "))
    if expected in tuple("ABCDE") and re.fullmatch(r"\( ?[a-e] ?\)", plain(text)):
        given = given.upper()
    return given == expected or unnamed(given) == expected or given == unnamed(expected)


def rounds(text: str, given: Fraction, answer: str, expected: Fraction) -> bool:
    """Whether a number is what a long decimal was computed as, or its rounding: 1/6 and 0.17 for 0.16666666666666666.

    What it was computed as agrees with all its digits, but for the last of a double. A rounding is written as one, with
    two decimals or more that leave two significant digits: 3 is none of 2.996.
    """
    error = abs(given - expected)
    if error <= max(half_a_unit(answer), abs(expected) / 10**12):
        return True
    half = half_a_unit(text)
    return error <= half <= Fraction(1, 200) and abs(given) >= 20 * half


def half_a_unit(number: str) -> Fraction:
    """Half of the last decimal of a number as it is written; 0 where it has none."""
    written = re.search(r"\.([0-9]+)(?:[eE]([-+]?[0-9]{1,3}))?(?![0-9])", number)
    return Fraction(10) ** (int(written[2] or 0) - len(written[1])) / 2 if written else Fraction(0)


def extract_answer(completion: str) -> str | None:
    r"""Text of the last marker; None without a marker, or where the braces of a last \boxed{ do not balance within
    MAX_CHARACTERS.

    The last marker is the one that begins last: in "The answer is \boxed{42}" it is the box. There is no falling back
    to an earlier marker: a policy could otherwise mark a guess and then hedge.
    """
    last = None
    for marker in MARKER.finditer(completion):
        last = marker
    if last is None:
        return None
    start = last.end()
    if last[0].endswith("{"):
        depth = 1
        for brace in BRACE.finditer(completion, start, start + MAX_CHARACTERS):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return completion[start : brace.start()].strip()
        return None
    if not last[0].startswith("#"):
        start = BEFORE_ANSWER.match(completion, start).end()
    text = completion[start : end.start() if (end := LINE_END.search(completion, start)) else None]
    text = text.strip()[: MAX_CHARACTERS + 1]  # with one more it is no answer
    return text if last[0].startswith("#") else SENTENCE_END.split(text, maxsplit=1)[0]
