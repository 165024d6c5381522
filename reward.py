r"""The reward R of a completion (docs/method.md): is the answer it marks the reference answer? Text in, True/False out.

    is_correct("3 + 4 = 7, so she has 7 apples.\n#### 7 apples", "7")  ->  True
    is_correct(r"so \boxed{\left[\dfrac12, \infty\right)}", r"[0.5,\infty)")  ->  True

It goes in two steps. `extract_answer` takes the text of the last marker: `#### ...`, `answer is ...`, `\boxed{...}`.
A number in running text is no answer: without this rule a policy is paid for stopping early or for listing numbers.
`canonical` then reads that text, and the reference, as values that can be compared with ==: a rational number, exactly;
a tuple, set, list, interval, union or matrix of values; of all else, the text without its typesetting.

What it leaves out:
  * No algebra. `3 + 4`, `2^5` and `\sqrt{4}` are no numbers here, and `2(x+1)` is not `2x+2`: a right answer in another
    form than the reference's earns nothing. --grader math-verify asks a library that knows some (`MathVerify`).
  * Percent signs, currencies and units are dropped: `50%` is 50, `5 million` is 5.
  * That a completion without an end token earns 0 is decided by the callers (train.py, evaluate.py), which see tokens.

The completion is written by the policy being trained, so it is hostile input: nothing is evaluated, every pass over it
is linear in its length, what is longer than an answer is not read as one, and no string raises.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from threading import Timer

MAX_CHARACTERS = 1000  # a longer text is no answer; also stays below the 4300 digits at which int() raises
MAX_DEPTH = 50  # of braces; and of brackets, where each may hold a value of its own
MAX_EXPONENT = 1000  # 1e999999999 would be a billion digits in exact arithmetic

MARKER = re.compile(r"#{4,}|answer is\b:?|\\boxed\{", re.IGNORECASE | re.ASCII)
LINE_END = re.compile(r"[\r\n]")
SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")  # not the point in 1,234.50
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ is a printed brace, it groups nothing

# What is only typesetting. What is dropped leaves a space behind, so that no two numbers grow together.
TYPESETTING = [
    (re.compile("\N{MINUS SIGN}"), "-"),
    (re.compile("π"), r"\\pi "),
    (re.compile("∞"), r"\\infty "),
    (re.compile("∪"), r"\\cup "),
    (re.compile(r"(?:√|(?<![\\A-Za-z])sqrt)(?= *\()"), r"\\sqrt"),
    (re.compile("√ *([0-9]*)"), r"\\sqrt{\1}"),
    (re.compile("[×·]"), r"\\cdot "),
    (re.compile(r"\{,\}|,\\!|(?<=[0-9])\\[,!](?=[0-9]{3}(?![0-9]))"), ","),  # 1{,}234, 1,\!234 and 1\,234
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\([lg])eq(?:slant)?(?![A-Za-z])"), r"\\\1e "),
    (re.compile(r"\\(?:begin|end)\{[pb]matrix\}"), lambda m: r"\matrix " if m[0][1] == "b" else r"\endmatrix "),
    (re.compile(r"\\(?:text|mbox)\{,? *(?:or|and) *\}|,? \b(?:or|and) ", re.ASCII), ","),
    (re.compile(r"\\(?:text|mbox|(?:text|math)(?:bf|it|rm))(?![A-Za-z]) *\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|q?quad|degree)(?![A-Za-z])"), " "),
    (re.compile(r"\^ *(?:\\circ|\{ *\\circ *\})|(?<!\\)\\[()\[\],;:! $]|\*\*|[$€£°`~]"), " "),
    (re.compile(r"(?<=[0-9]) *(?:\\cdot|\\times) *10 *\^ *(?:([0-9])|\{ *(-?[0-9]+) *\})"), r"e\1\2"),  # 2 \cdot 10^5
    (re.compile(r"(?:\\cdot|\\times|\*)(?![A-Za-z])(?! *[0-9])"), " "),  # 2 \cdot x is 2x; 2 \cdot 3 is not 23
    (re.compile(r"([_^])(-?[0-9]{2,})"), r"\1{\2}"),  # x^10 is meant as x^{10}
]
SPACE = re.compile("(?<![0-9]) | (?![0-9])")  # all but what keeps two numbers apart
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
COMMAND = re.compile(r"\\[A-Za-z]+ *$")
OPENING, CLOSING = {"(", "[", r"\{", r"\matrix"}, {")", "]", r"\}", r"\endmatrix"}

# [0-9] rather than \d, which also matches the digits of other scripts.
NUMBER = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
VALUE = re.compile(
    rf"""
    (?: [A-Za-z\ ]* [=:] \ ? )?                     # a name: "x = 5", "Total: 5"; but not "not 5"
    (?P<sign> [+-]? ) \ ?
    (?: (?P<whole> [0-9]+ ) \ (?=[0-9]+/) )?        # of a mixed number: 1 1/2
    (?P<number> {NUMBER} )
    (?: \ ?/\ ? (?P<denominator> {NUMBER} ) )?
    (?: \ ?\\?% )?
    (?P<unit> ,?\ ?[/(]?                            # a unit: "5 apples", "5kg", "5/hour", "5 (in all)"; it starts with
        (?: [^\W\d_]{{2}} | [ghlLms]\b )            # two letters or is a common symbol, since 5x and 2i are algebra;
        [^\d=+*^<>|\\{{}}]*                         # it holds no second value and no formula
        (?: \^[23] )? )?                            # but for cm^2
    \.?
    """,
    re.VERBOSE,
)
NAME = re.compile(r"[A-Za-z](?: ?\( ?[A-Za-z] ?\))? ?(?:=|\\in(?![A-Za-z]))(?![^=]*[=<>])")  # y =, f(x) =, x \in
UNITS = re.compile(r"(?:(?<=[0-9)])|(?<=\\pi))(?: [A-Za-z]{2,}(?: ?\^ ?[23])?)+$")  # 9\pi square inches


GRADERS = ("rules", "math-verify")


def grader(name: str) -> Callable[[str, str], bool]:
    """What decides whether a completion holds an answer. ValueError for math-verify where it is not installed."""
    return MathVerify().is_correct if name == "math-verify" else is_correct


def is_correct(completion: str, answer: str) -> bool:
    """Whether the last marker of `completion` holds the reference `answer`: equal as values, see `canonical`."""
    given, expected = extract_answer(completion), canonical(answer)
    # The letters of a reference `5mn` are variables; a completion's `5kg` is a number with a unit.
    return given is not None and expected is not None and canonical(given, isinstance(expected, Fraction)) == expected


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


def canonical(text: str, glued_units: bool = False) -> Fraction | tuple | str | None:
    r"""What `text` says, the same for all ways to write it that are known here; None if it is empty or too long.

    A Fraction; a tuple of a kind and of such values, in order for "(1, 2)", "[0, 1)" and matrices, sorted for sets,
    unions, "1, 2" and "\pm 1"; or a string.  glued_units: whether 5kg is a number.
    """
    return value(plain(text), glued_units)


def parse_number(text: str) -> Fraction | None:
    """The one number that `text` holds, exactly, or None: none, several, or one beyond the limits above."""
    number = canonical(text, glued_units=True)
    return number if isinstance(number, Fraction) else None


def plain(text: str) -> str:
    r"""`text` without typesetting and braces: \dfrac{1}{2} is 1/2, \sqrt{12} is \sqrt(12). Empty if it is too long."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS or text.count("{") > MAX_DEPTH:
        return ""
    for pattern, replacement in TYPESETTING:
        text = pattern.sub(replacement, text)
    return " ".join(unbraced(iter(TOKEN.findall(text))).split())


def unbraced(tokens: Iterator[str], end: str = "}") -> str:
    """The tokens up to `end` as text without braces. What a command or a ^ is applied to gets parentheses instead."""
    text = ""
    for token in tokens:
        if token == end:
            break
        if token == r"\frac":
            over, under = argument(tokens), argument(tokens)
            before = text.rstrip()[-1:]
            if before == "" or before in "([,=":
                text += "-" * (over.startswith("-") != under.startswith("-"))
                over, under = over.removeprefix("-"), under.removeprefix("-")
            if before.isdigit() and over.isdigit():  # a mixed number
                text += f" {over}/"
            else:  # 3x/4 without parentheses, but not behind another factor
                text += f"({over})/" if before.isalnum() or re.search(r"[-+/=]", over) else f"{over}/"
            text += under if re.fullmatch(r"[0-9.,]+|\\?[A-Za-z]+", under) else f"({under})"
        elif token in (r"\sqrt", "^", "_"):
            inner = argument(tokens)
            text += token + (inner if len(inner) == 1 else f"({inner})")
        else:
            inner = unbraced(tokens) if token == "{" else token
            text += f"({inner})" if len(inner) > 1 and token == "{" and COMMAND.search(text) else inner
    return text


def argument(tokens: Iterator[str]) -> str:
    """What a command is applied to: a group in braces or parentheses, or else a single token."""
    token = next((token for token in tokens if token != " "), "")
    return SPACE.sub("", unbraced(tokens, {"{": "}", "(": ")"}[token])).strip() if token in ("{", "(") else token


def value(text: str, glued_units: bool = False, depth: int = 0) -> Fraction | tuple | str | None:
    """`canonical` of a plain text."""
    text = text.strip().removesuffix(".").strip()
    if (number := rational(text, glued_units)) is not None:
        return number
    if depth > MAX_DEPTH:
        return None
    for separator, kind in ((r"\cup", "union"), (",", "list")):
        parts = split(text, separator)
        if len(parts) > 1:
            return kind, *sorted((value(part, depth=depth + 1) for part in parts), key=repr)
    text = NAME.sub("", text, count=1).strip() if NAME.match(text) else text
    tokens = TOKEN.findall(text)
    if len(tokens) > 2 and tokens[0] in OPENING and tokens[-1] in CLOSING and closes_last(tokens):
        inner = text[len(tokens[0]) : -len(tokens[-1])]
        if tokens[0] == r"\matrix":
            rows = [split(row, "&") for row in split(inner, r"\\")]
            return "matrix", *(tuple(value(cell, depth=depth + 1) for cell in row) for row in rows)
        parts = [value(part, depth=depth + 1) for part in split(inner, ",")]
        if tokens[0] == r"\{":
            return "list", *sorted(parts, key=repr)
        return parts[0] if len(parts) == 1 and tokens[0] == "(" else (tokens[0] + tokens[-1], *parts)
    if r"\pm" in tokens:
        both = (value(text.replace(r"\pm", sign), depth=depth + 1) for sign in "+-")
        return "list", *sorted(both, key=repr)
    return expression(text)


def expression(text: str) -> str | None:
    """A formula or words without spaces; a sum's terms are sorted, since 1 + x is x + 1."""
    text = UNITS.sub("", text)
    if re.fullmatch(r"[A-Za-z ]{2,}", text):
        text = text.lower()
    text = SPACE.sub("", text)
    sides = ("+".join(sorted(split(re.sub(r"(?<=[^(\[=^_])-", "+-", side), "+"))) for side in split(text, "="))
    return "=".join(sides).lstrip("+") or None


def rational(text: str, glued_units: bool) -> Fraction | None:
    found = VALUE.fullmatch(text)
    if found is None or (found["unit"] and found["unit"][0].isalpha() and not glued_units):
        return None
    parts = [
        to_fraction(found[part] or default) for part, default in (("whole", "0"), ("number", ""), ("denominator", "1"))
    ]
    if None in parts or parts[2] == 0:
        return None
    whole, numerator, denominator = parts
    return (-1 if found["sign"] == "-" else 1) * (whole + numerator / denominator)


def to_fraction(number: str) -> Fraction | None:
    """A match of NUMBER as a Fraction, or None if its exponent is beyond MAX_EXPONENT."""
    exponent = number.lower().partition("e")[2]
    if abs(int(exponent or "0")) > MAX_EXPONENT:
        return None
    return Fraction(number.replace(",", ""))


def split(text: str, separator: str) -> list[str]:
    """`text` cut at the separators that stand in no brackets."""
    parts, depth = [""], 0
    for token in TOKEN.findall(text):
        depth += (token in OPENING) - (token in CLOSING)
        if token == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def closes_last(tokens: list[str]) -> bool:
    """Whether the bracket that the tokens begin with is closed by their last one."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in OPENING) - (token in CLOSING)
        if depth == 0:
            return i == len(tokens) - 1
    return False


class MathVerify:
    """The grader of --grader math-verify: `is_correct` and, of references that are no numbers, symbolic equality too.

    (A number has to be worked out: 3 + 4 is no answer where 7 is asked for.)  The library works in a process of its
    own. One that has not answered in `limit_s` seconds is killed, which counts as no, and the next question starts
    another (a second or two). Raises ValueError where math-verify is not installed.
    """

    def __init__(self, limit_s: float = 3.0):
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("--grader math-verify needs another package: pip install math-verify")
        self.limit_s, self.worker = limit_s, None

    def is_correct(self, completion: str, answer: str) -> bool:
        given = extract_answer(completion)
        if given is None or is_correct(completion, answer) or isinstance(canonical(answer), Fraction):
            return is_correct(completion, answer)
        return self.equal(given, answer)

    def equal(self, given: str, answer: str) -> bool:
        if max(len(given), len(answer)) > MAX_CHARACTERS:
            return False
        if self.worker is None:
            self.worker = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it; it ends with its input
            )
            self.worker.stdout.readline()  # it has imported what it needs
        timer = Timer(self.limit_s, self.worker.kill)
        timer.start()
        try:
            self.worker.stdin.write(json.dumps([given.removesuffix("."), answer.removesuffix(".")]).encode() + b"\n")
            self.worker.stdin.flush()
            line = self.worker.stdout.readline()
        except OSError:  # killed meanwhile
            line = b""
        timer.cancel()
        if not line:
            self.close()
        return line == b"true\n"

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None


def answer_questions() -> None:
    """The other process: a line [given, answer] of JSON in, a line true or false out."""
    import logging

    import math_verify

    logging.disable()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))  # 9^{9^9} is stopped by its size before its time
    except ImportError:  # not on Windows
        pass
    print("ready", flush=True)
    for line in sys.stdin:
        given, answer = (math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in json.loads(line))
        print(json.dumps(bool(math_verify.verify(answer, given, timeout_seconds=None))), flush=True)


if __name__ == "__main__":
    answer_questions()
