r"""The reward R of a completion (docs/method.md): is the answer it marks the reference answer? Text in, True/False out.

    is_correct("3 + 4 = 7, so she has 7 apples.\n#### 7 apples", "7")  ->  True

It goes in two steps. `extract_answer` takes the text of the last marker: `#### ...`, `answer is ...`, `\boxed{...}`.
A number in running text is no answer: without this rule a policy is paid for stopping early or for listing numbers.
`parse_number` then reads that text as one exact value, or refuses: a marker with several values earns nothing.

What it leaves out:
  * An expression is not evaluated: `3 + 4`, `2^5`, `1 1/2` and `\sqrt{4}` are not numbers here.
  * Percent signs, currencies and units are dropped: `50%` is 50, `5 million` is 5.
  * A reference that is no number (MATH's `\frac{\pi}{2}`) is compared as a string. A full comparison of LaTeX, in which
    `\frac{\pi}{2}` equals `\pi/2`, is not done; scores on MATH are therefore a lower bound.
  * That a completion without an end token earns 0 is decided by the callers (train.py, evaluate.py), which see tokens.

The completion is written by the policy being trained, so it is hostile input: nothing is evaluated, every pass over it
is linear in its length, and no string raises.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 1000  # a longer text is not read as a number; also stays below the 4300 digits at which int() raises
MAX_EXPONENT = 1000  # 1e999999999 would be a billion digits in exact arithmetic

MARKER = re.compile(r"#{4,}|answer is\b:?|\\boxed\{", re.IGNORECASE | re.ASCII)
LINE_END = re.compile(r"[\r\n]")
SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")  # not the point in 1,234.50
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ is a printed brace, it groups nothing

# Typesetting around a value. What is dropped leaves a space behind, so that no two numbers grow together.
TYPESETTING = [
    (re.compile("\N{MINUS SIGN}"), "-"),
    (re.compile(r"\{,\}|,\\!"), ","),  # 1{,}234 and 1,\!234
    (re.compile(r"\\[dt]?frac *([0-9]|\{[0-9]+\}) *([0-9]|\{[0-9]+\})"), r" \1/\2 "),  # \frac{3}{4} and \frac34
    (re.compile(r"\{([0-9]+)\}"), r"\1"),  # {42} prints as 42
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\\circ|\^\{\\circ\}|\\[()\[\],;:! $]|\*\*|[$€£°`~]"), " "),
]

# [0-9] rather than \d, which also matches the digits of other scripts.
NUMBER = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
VALUE = re.compile(
    rf"""
    (?: [A-Za-z\ ]* [=:] \ ? )?                     # a name: "x = 5", "Total: 5"; but not "not 5"
    (?P<sign> [+-]? ) \ ?
    (?P<number> {NUMBER} )
    (?: \ ?/\ ? (?P<denominator> {NUMBER} ) )?
    (?: \ ?\\?% )?
    (?: ,?\ ?[/(]?                                  # a unit: "5 apples", "5kg", "5/hour", "5 (in all)"; it starts with
        (?: [^\W\d_]{{2}} | [ghlLms]\b )            # two letters or is a common symbol, since 5x and 2i are algebra;
        [^\d=+*^<>|\\{{}}]* )?                      # it holds no second value and no formula
    \.?
    """,
    re.VERBOSE,
)


def is_correct(completion: str, answer: str) -> bool:
    """Whether the last marker of `completion` holds the reference `answer`: equal as numbers where the reference is
    one, equal as strings where it is not."""
    given = extract_answer(completion)
    if given is None:
        return False
    expected = parse_number(answer)
    if expected is not None:
        return parse_number(given) == expected
    return strip_markup(given) == strip_markup(answer) != ""


def extract_answer(completion: str) -> str | None:
    r"""Text of the last marker; None without a marker or where the braces of a last \boxed{ do not balance.

    Last means last to begin, which in "The answer is \boxed{42}" is the inner one. There is no falling back to an
    earlier marker: a policy could otherwise mark a guess and then hedge.
    """
    last = None
    for marker in MARKER.finditer(completion):
        last = marker
    if last is None:
        return None
    if last[0].endswith("{"):
        return text_in_braces(completion, last.end())
    line_end = LINE_END.search(completion, last.end())
    text = completion[last.end() : line_end.start() if line_end else None]
    if not last[0].startswith("#"):
        text = SENTENCE_END.split(text, maxsplit=1)[0]
    return text.strip()


def text_in_braces(text: str, start: int) -> str | None:
    """What stands between the brace opened just before `start` and the one that closes it, or None if none does."""
    depth = 1
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return None


def parse_number(text: str) -> Fraction | None:
    """The one value that `text` holds, exactly, or None: no value, several, or one beyond the limits above."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None
    for pattern, replacement in TYPESETTING:
        text = pattern.sub(replacement, text)
    value = VALUE.fullmatch(" ".join(text.split()))
    if value is None:
        return None
    numerator, denominator = to_fraction(value["number"]), to_fraction(value["denominator"] or "1")
    if numerator is None or not denominator:
        return None
    return (-numerator if value["sign"] == "-" else numerator) / denominator


def to_fraction(number: str) -> Fraction | None:
    """A match of NUMBER as a Fraction, or None if its exponent is beyond MAX_EXPONENT."""
    exponent = number.lower().partition("e")[2]
    if abs(int(exponent or "0")) > MAX_EXPONENT:
        return None
    return Fraction(number.replace(",", ""))


def strip_markup(text: str) -> str:
    """`text` without white space, emphasis and dollar signs around it, and without a trailing full stop."""
    return text.strip(" \t\r\n*$").removesuffix(".").strip(" \t\r\n*$")
