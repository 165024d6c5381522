r"""The reward R of a completion (docs/method.md), and first: is the answer that it marks the reference answer?

    is_correct("3 + 4 = 7, so she has 7 apples.\n#### 7 apples", "7")  ->  True
    is_correct(r"so \boxed{\left[\dfrac12, \infty\right)}", r"[0.5,\infty)")  ->  True

It goes in two steps. `extract_answer` takes the text of the last marker: `#### ...`, `answer is ...`, `\boxed{...}`.
A number in running text is no answer: without this rule a policy is paid for stopping early or for listing numbers.
`canonical` then reads that text, and the reference, as values that can be compared with ==: a rational number, exactly;
a tuple, set, list, interval, union or matrix of values; of all else, the formula as it is written, or the words.

What it leaves out:
  * No algebra. `3 + 4`, `2^5` and `\sqrt{4}` are no numbers here, and `2(x+1)` is not `2x+2`: a right answer in another
    form than the reference's earns nothing. --grader math-verify asks a library that knows some (support/graders.py).
  * Percent signs, currencies and units are dropped: `50%` is 50, `5 million` is 5.
  * That a completion without an end token is not correct and earns 0 is decided by `evaluate.score`, which sees tokens.

The completion is written by the policy being trained, so it is hostile input: nothing is evaluated, every pass over it
is linear in its length, what is longer than an answer is not read as one, and no string raises.
"""

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate

MAX_CHARACTERS = 1000  # a longer text is no answer; also stays below the 4300 digits at which int() raises
MAX_DEPTH = 50  # of brackets
MAX_EXPONENT = 1000  # 1e999999999 would be a billion digits in exact arithmetic

MARKER = re.compile(r"#{4,}|answer is\b:?|\\boxed\{", re.IGNORECASE | re.ASCII)
LINE_END = re.compile(r"[\r\n]")
SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")  # not the point in 1,234.50
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ is a printed brace, it groups nothing

# What is only typesetting. What is dropped leaves a space behind, so that no two numbers grow together.
SIGNS = {"π": "pi", "∞": "infty", "∪": "cup", "√": "sqrt", "±": "pm", "≤": "le", "≥": "ge", "×": "cdot", "·": "cdot"}
TEXT = r"\\(?:text|mbox|operatorname|boldsymbol|(?:text|math)(?:bf|it|rm))(?![A-Za-z]) *\{([^{}]*)\}"
MATHS = (  # no unit begins with these
    r"(?i:pi|ln|log|exp|sin|cos|tan|cot|sec|csc|sqrt|mod|choose|squared|cubed|plus|minus|times|over|is|not|or|and|except|"
    r"wrong|incorrect|[ap]m)(?![A-Za-z])"
)
SYMBOL = r"(?:[^\W\d_]{2}|[CFghJlLmNsVW]\b)"  # a unit has two letters or is a common symbol, for 5x and 2i are algebra
UNIT = rf"\\(?:text|textrm|mbox|mathrm)(?![A-Za-z]) *\{{ *(?!{MATHS}){SYMBOL}[^{{}}0-9\\,:]*\}}"  # of 5 \text{ cm}
TYPESETTING = [
    (re.compile("\N{MINUS SIGN}"), "-"),
    (re.compile("√ *([0-9]+)"), r"\\sqrt{\1}"),
    *((re.compile(sign), rf"\\{name} ") for sign, name in SIGNS.items()),
    (re.compile(r"(?<![\\A-Za-z])sqrt(?= *\()"), r"\\sqrt"),
    (re.compile(r"(?<=[0-9]) ?(?:\{,\}|,? ?\\!|\\,) ?(?=[0-9]{3}(?![0-9]))"), ""),  # 1{,}234, 1,\!234 and 1\,234
    (re.compile(r"(?<=\{)([0-9]{1,3}),([0-9]{3})(?=\})"), r"\1\2"),  # \frac{1,000}{3}
    (re.compile(r"\\[dtc](frac|binom)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\not *(=|\\in(?![A-Za-z]))"), lambda m: r"\ne " if m[1] == "=" else r"\notin "),
    (re.compile(r"\\([lgn])eq?(?:slant)?(?![A-Za-z])"), r"\\\1e "),
    (re.compile(r"\\([lr])brace(?![A-Za-z])"), lambda m: r"\{" if m[1] == "l" else r"\}"),
    (re.compile(r"\\(?:begin|end)\{[pb]matrix\}"), lambda m: r"\matrix " if m[0][1] == "b" else r"\endmatrix "),
    (re.compile(r",? *\\(?:text|mbox) *\{,? *(?:or|and) *\}|,? \b(?:or|and) ", re.ASCII), ","),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|q?quad|degree)(?![A-Za-z])"), " "),
    (re.compile(r"\^ *(?:\\circ|\{ *\\circ *\})|(?<!\\)\\[()\[\],;:! $]|\*\*|\\?%|[$€£°`~]"), " "),
    (
        re.compile(r"(?<=[0-9]) *(?:\\cdot|\\times|\*) *\{?10\}? *\^ *(?:(-?[0-9]+)|\{ *(-?[0-9]+) *\})(?![0-9])"),
        r"e\1\2",
    ),
    (re.compile(r"([_^]) *(-[0-9]+|[0-9]{2,})"), r"\1{\2}"),  # x^10 is meant as x^{10}
    (re.compile(rf"(?<=[0-9)}}i]) *{UNIT}(?: *\^ *\{{?[23]\}}?)?(?=[ .]*(?:[,)]|\\\}}|$))"), ""),
    (re.compile(TEXT), r" \1 "),
]
UNITS = re.compile(rf"(?:(?<=[0-9)}}])|(?<=\\pi)) +(?!{MATHS})[a-z]{{3,}}(?: [a-z]{{2,}})*\.?$")  # 9\pi square inches
AS_WRITTEN = re.compile(r"\\overline|[|:!']")  # 0.\overline{3}, |x|, 3:1, n!, f'
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|.", re.DOTALL)
OPENING, CLOSING = {"{", "(", "[", r"\{", r"\langle", r"\matrix"}, {"}", ")", "]", r"\}", r"\rangle", r"\endmatrix"}
TIMES = {r"\cdot", r"\times", "*"}
FORMULAS = {"sum", "product", "quotient", "negative", r"\sqrt", r"\binom", "^", "_"}
NAMES = {"_", "product", "()"}
GREEK = {r"\alpha", r"\beta", r"\gamma", r"\theta", r"\phi", r"\varphi", r"\lambda", r"\mu", r"\sigma", r"\omega"}
RELATIONS = {"=", r"\in", "<", ">", r"\le", r"\ge", r"\ne"}

# [0-9] rather than \d, which also matches the digits of other scripts.
NUMBER = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
FRACTION = re.compile(rf"\\frac *([0-9]|\{{ *{NUMBER} *\}}) *([0-9]|\{{ *{NUMBER} *\}})")
VALUE = re.compile(
    rf"""
    (?P<name> (?! (?i: [a-z\ ]* \b(?:not|no|but)\b ) )                         # "x = 5", "Total: 5"
        (?: [A-Za-z] | [A-Z]{{2,3}} | [A-Za-z]{{3,}} (?:\ [A-Za-z]+)* )? \ ?[=:]\ ? )?
    (?P<sign> [+-]? ) \ ?
    (?: (?P<whole> [0-9]+ ) \ (?=[0-9]+\ ?/) )?     # of a mixed number: 1 1/2
    (?P<number> {NUMBER} )
    (?: \ ?/\ ? (?P<denominator> {NUMBER} ) )?
    (?P<unit> (?: ,?\ ?/? | \ \( ) (?!{MATHS})      # a unit: "5 apples", "5kg", "5/hour", "5 (in all)"
        {SYMBOL}
        [^\d=+*^<>|\\{{}}]*                         # it holds no second value and no formula
        (?: \^[23] )? )?                            # but for cm^2
    \ ?\.?
    """,
    re.VERBOSE,
)


def reward(completion: str, correct: bool) -> float:
    """R, what the gradient sees: 1 for a correct completion. Accuracy counts `correct` alone, whatever this pays."""
    return float(correct)


def is_correct(completion: str, answer: str) -> bool:
    """Whether the last marker of `completion` holds the reference `answer`: equal as values, see `canonical`."""
    given, expected = extract_answer(completion), canonical(answer)
    if given is None or expected is None or len(given) > MAX_CHARACTERS:
        return False
    if isinstance(expected, Fraction):
        return parse_number(given) == expected
    found = [canonical(given), canonical(UNITS.sub("", given))]
    return expected in (*found, *map(unnamed, found)) or unnamed(expected) in found


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
    """What stands between the brace opened just before `start` and the one that closes it, or None if none does, or not
    within MAX_CHARACTERS."""
    depth = 1
    for brace in BRACE.finditer(text, start, start + MAX_CHARACTERS):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return None


# From a text to a value. A formula is a tree, its leaves are numbers, letters and commands; what is side by side is a
# product. Nothing is rearranged but the order of a sum's terms.


def canonical(text: str) -> Fraction | tuple | str | None:
    r"""What `text` says, the same for all ways to write it that are known here; None if it is empty or too long.

    A Fraction; a tuple of a kind and of such values, in order for "(1, 2)", "[0, 1)", matrices and formulas, sorted for
    sets, unions, sums, "1, 2" and "\pm 1"; or a string, for a letter, words, and what is not understood.
    """
    text = plain(text)
    if AS_WRITTEN.search(text):
        return re.sub("(?<![0-9]) | (?![0-9])", "", text.removesuffix("."))
    try:
        tokens = TOKEN.findall(text)
        if max(depths(tokens), default=0) > MAX_DEPTH:
            raise ValueError("too deep")
        return value(tokens)
    except (ValueError, RecursionError):  # broken, or beyond this: as it is written
        return text.replace(" ", "") or None


def parse_number(text: str) -> Fraction | None:
    """The one number that `text` holds, exactly, whatever its name and unit; or None: none, several, or one beyond the
    limits above."""
    number = rational(plain(text), dressed=True)
    if number is None:
        number = unnamed(canonical(text))
    return number if isinstance(number, Fraction) else None


def unnamed(found):
    """The value alone of "x = 2", "f(x) = 2y", "x = 1, x = 2" and "x = 1, 2"; all else as it is, "x = 1, y = 2" too."""

    def is_name(left) -> bool:  # x, \theta, area; x_1, f(x), f(2), AB, \angle A, (x, y)
        if isinstance(left, str):
            return len(left) == 1 or left in GREEK or (left.isalpha() and not re.search("not?|but|except", left))
        if not isinstance(left, tuple) or left[0] not in NAMES:
            return False
        kind, first, *others = left
        if kind == "product":
            letters = all(isinstance(one, str) and one.isupper() for one in others)
            return (
                letters
                and (first == r"\angle" or str(first).isupper())
                or (len(others) == 1 and first in tuple("fghpPSTV") and isinstance(others[0], str | Fraction))
            )
        return is_name(first)

    parts = found[1:] if isinstance(found, tuple) and found[0] == "list" else [found]
    named = [part for part in parts if isinstance(part, tuple) and part[0] == "=" and len(part) == 3]
    if len({part[1] for part in named}) != 1 or not is_name(named[0][1]):
        return found
    values = [part[-1] if part in named else part for part in parts]
    if any(isinstance(value, str) and value.isalpha() for value in values):  # B = A names no choice
        return found
    return ("list", *sorted(values, key=repr)) if len(parts) > 1 else values[0]


def plain(text: str) -> str:
    """`text` without typesetting. Empty if it is too long."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return ""
    for pattern, replacement in TYPESETTING:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def rational(text: str, dressed: bool = False) -> Fraction | None:
    """A plain text that is a number, or a fraction of two. dressed: it may have a name and a unit."""
    text = FRACTION.sub(lambda m: f" {m[1].strip('{ }')}/{m[2].strip('{ }')} ", text)
    found = VALUE.fullmatch(" ".join(text.split()))
    if found is None or (not dressed and (found["name"] or found["unit"])):
        return None
    whole, numerator, denominator = (
        to_fraction(found[part] or default) for part, default in (("whole", "0"), ("number", ""), ("denominator", "1"))
    )
    if None in (whole, numerator, denominator) or denominator == 0 or (whole and numerator >= denominator):
        return None
    return (-1 if found["sign"] == "-" else 1) * (whole + numerator / denominator)


def value(tokens: list[str]):
    """A list, union, relation, tuple, matrix, word or formula. ValueError where it is none."""
    tokens = stripped(tokens)
    if tokens[-1:] == ["."]:
        tokens = stripped(tokens[:-1])
    if (number := rational("".join(tokens))) is not None:
        return number
    parts, commas = split(tokens, {","})
    if commas:
        return unordered("list", parts)
    sides, relations = split(tokens, RELATIONS)
    if relations:
        kind = " ".join(relations).replace(r"\in", "=")
        return kind, *(value(side) for side in sides)
    parts, unions = split(tokens, {r"\cup"})
    if unions:
        return unordered("union", parts)
    if tokens and tokens[0] in OPENING and closing(tokens) == len(tokens) - 1:
        inside = tokens[1:-1]
        if tokens[0] == r"\matrix":
            rows = [row for row in split(inside, {r"\\"})[0] if stripped(row)]
            return "matrix", *(tuple(value(cell) for cell in split(row, {"&"})[0]) for row in rows)
        parts, _ = split(inside, {","})
        if tokens[0] == r"\{":
            return unordered("list", parts)
        if tokens[0] in "({" and len(parts) == 1:
            return value(inside)
        return tokens[0] + tokens[-1], *(value(part) for part in parts)
    if tokens.count(r"\pm") == 1:
        swapped = ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"})
        return unordered("list", [[signs.get(token, token) for token in tokens] for signs in swapped])
    if all(token.isalpha() or token == " " for token in tokens) and len(tokens) > 2:  # words
        text = "".join(tokens)
        return text if text.isupper() else text.lower()
    return total(tokens)


def stripped(tokens: list[str]) -> list[str]:
    """Without spaces around; the text that they are of has none doubled."""
    return tokens[tokens[:1] == [" "] : len(tokens) - (tokens[-1:] == [" "])]


def unordered(kind: str, parts: list[list[str]]) -> tuple:
    values = [value(part) for part in parts]
    flat = [each for v in values for each in (v[1:] if isinstance(v, tuple) and v[0] == "list" else (v,))]
    return kind, *sorted(flat, key=repr)


def total(tokens: list[str]):
    """The sum of the terms, in any order."""
    terms, term, sign, before = [], [], "+", ""
    for token, depth in zip(tokens, depths(tokens), strict=True):
        if token in "+-" and depth == 0 and before not in TIMES | {"/", "^", "_"}:
            if before:
                terms.append(negative(product(term)) if sign == "-" else product(term))
            term, sign, before = [], token if before else "+" if sign == token else "-", ""
        else:
            term.append(token)
            before = before if token == " " else token
    terms.append(negative(product(term)) if sign == "-" else product(term))
    return terms[0] if len(terms) == 1 else ("sum", *sorted(terms, key=repr))


def product(tokens: list[str]):
    r"""The factors in their order. What stands before a / is its numerator, one factor behind it the denominator:
    2\pi/3x is (2\pi/3)x."""
    rest, factors, divided = deque(tokens), [], False
    mixed = re.match(r"[0-9]+ ?\\frac", "".join(stripped(tokens)))  # 1\frac{1}{2}
    while rest:
        token = rest.popleft()
        if token == "/":
            if divided:
                raise ValueError("1/2/3 has no one reading")
            divided = True
            factors = [quotient(joined(factors), factor(rest))]
        elif token not in TIMES and token != " ":
            rest.appendleft(token)
            one = factor(rest)
            if mixed and token == r"\frac" and len(factors) == 1 and is_proper(one):
                factors = [factors[0] + one]
            elif one is not None:
                factors.append(one)
    return joined(factors)


def factor(rest: deque[str]):
    """The next factor with its exponents and subscripts, taken off `rest`."""
    base = argument(rest, digits=None)
    for _ in range(MAX_DEPTH):
        while rest and rest[0] == " ":
            rest.popleft()
        if not rest or rest[0] not in ("^", "_"):
            return base
        base = rest.popleft(), base, argument(rest)
    raise ValueError("too many exponents")


def argument(rest: deque[str], digits: int | None = 1):
    r"""A group, a command with its arguments, a letter or a number, of which LaTeX takes one digit: \frac12 is 1/2."""
    while rest and rest[0] == " ":
        rest.popleft()
    if not rest or rest[0] in CLOSING:
        raise ValueError("something is missing")
    token = rest.popleft()
    if token in OPENING:
        end = closing([token, *rest])
        group = [token, *(rest.popleft() for _ in range(end))]
        return None if group == ["{", "}"] else value(group)
    if token in ("-", "+"):
        return negative(factor(rest)) if token == "-" else factor(rest)
    if token == r"\frac":
        return quotient(argument(rest), argument(rest))
    if token == r"\binom":
        return token, argument(rest), argument(rest)
    if token == r"\sqrt":
        return token, argument(rest) if rest and rest[0] == "[" else None, argument(rest)
    if token[0] in "0123456789.":
        if digits and len(token) > digits:
            rest.appendleft(token[digits:])
            token = token[:digits]
        return Fraction(token) if token != "." else token
    return token


def is_proper(x) -> bool:
    return isinstance(x, Fraction) and 0 < x < 1


def joined(factors: list):
    if not factors:
        raise ValueError("a term is empty")
    return factors[0] if len(factors) == 1 else ("product", *factors)


def negative(x):
    if isinstance(x, Fraction):
        return -x
    return x[1] if isinstance(x, tuple) and x[0] == "negative" else ("negative", x)


def quotient(over, under):
    """A number if both are; else a sign is drawn out of either, but not out of a sum."""
    if isinstance(over, Fraction) and isinstance(under, Fraction) and under:
        return over / under
    signs = [x < 0 if isinstance(x, Fraction) else isinstance(x, tuple) and x[0] == "negative" for x in (over, under)]
    result = "quotient", negative(over) if signs[0] else over, negative(under) if signs[1] else under
    return negative(result) if signs[0] != signs[1] else result


def split(tokens: list[str], separators: set[str]) -> tuple[list[list[str]], list[str]]:
    """The tokens cut at the separators that stand in no brackets, and these."""
    parts, found = [[]], []
    for token, depth in zip(tokens, depths(tokens), strict=True):
        if token in separators and depth == 0:
            parts.append([])
            found.append(token)
        else:
            parts[-1].append(token)
    return parts, found


def closing(tokens: list[str]) -> int:
    """Where the bracket that the tokens begin with is closed. ValueError if it is not."""
    for i, depth in enumerate(depths(tokens)):
        if depth == 0:
            return i
    raise ValueError("a bracket is not closed")


def depths(tokens: list[str]) -> Iterator[int]:
    """In how many brackets each token stands, one that opens among them, one that closes no more."""
    return accumulate((token in OPENING) - (token in CLOSING) for token in tokens)


def to_fraction(number: str) -> Fraction | None:
    """A match of NUMBER as a Fraction, or None if its exponent is beyond MAX_EXPONENT."""
    exponent = number.lower().partition("e")[2]
    if abs(int(exponent or "0")) > MAX_EXPONENT:
        return None
    return Fraction(number.replace(",", ""))
