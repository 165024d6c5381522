r"""What an answer is worth: LaTeX or words in, a value out that can be compared with ==.

    canonical(r"\left[\dfrac12, \infty\right)")  ==  canonical(r"[0.5,\infty)")

A rational number, exactly; a list, tuple, interval, union, matrix or relation of values; everything else as text, with
its spaces, braces and some capitals made one.

What it leaves out:
  * No algebra and no grammar. `3 + 4`, `2^5` and `\sqrt{4}` are no numbers here, and `x+2` is not `2+x`: a right answer
    that only algebra could match to the reference earns nothing. --grader math-verify asks a library for it.
  * Percent and currency signs are dropped: `50%` is 50. A unit counts where both sides have one: `5 m` is 5, and
    `5 meters`, not `5 s` (units.py).

The text is written by the policy being trained, so it is hostile input: nothing is evaluated, every pass over it is
linear in its length, what is longer than an answer is not read as one, and no string raises.
"""

import re
from fractions import Fraction
from itertools import accumulate

from units import LETTER, NO_UNIT, split_unit

MAX_CHARACTERS = 1000  # a longer text is no answer; also stays below the 4300 digits at which int() raises
MAX_DEPTH = 50  # of brackets
MAX_EXPONENT = 1000  # 1e999999999 would be a billion digits in exact arithmetic

# What is only typesetting. What is dropped leaves a space behind, so that no two numbers grow together.
SIGNS = r"π \pi ∞ \infty ∪ \cup ∈ \in ∅ \emptyset ± \pm × \times · \cdot ≤ \le ≥ \ge ≠ \ne ≈ \approx θ \theta".split()
SIGNS += "¢ cents ² ^2 ³ ^3 ½ 1/2 ⅓ 1/3 ⅔ 2/3 ¼ 1/4 ¾ 3/4 ⅛ 1/8 ⅜ 3/8 ⅝ 5/8 ⅞ 7/8".split()
SIGNS = {ord(sign): f" {name} " for sign, name in zip(SIGNS[::2], SIGNS[1::2], strict=True)}
SIGNS |= dict.fromkeys(map(ord, "−–"), "-")
SIGNS |= {0xFF01 + i: chr(0x21 + i) for i in range(94)}  # full-width, of Chinese and Japanese texts
SIGNS |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"), "")  # zero-width
COMMANDS = {"dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom"}
COMMANDS |= {"lt": "<", "gt": ">", "leq": r"\le", "leqslant": r"\le", "geq": r"\ge", "geqslant": r"\ge", "neq": r"\ne"}
COMMANDS |= {"varnothing": r"\emptyset", "lbrace": r"\{", "rbrace": r"\}", "mid": "|"}
COMMANDS |= dict.fromkeys("left right big bigl bigr Big Bigl Bigr displaystyle quad qquad degree".split(), " ")
CURRENCIES = {"$": " dollars", "€": " euros", "£": " sterling"}
DRESS = [
    (  # 1 234 and 1'234, but not 1 234 5
        r"^\s*([-+]?(?:\\?[$€£])?[1-9][0-9]{0,2}([ '’\u00a0\u2009\u202f])[0-9]{3}(?:\2[0-9]{3})*)(?! ?[-0-9/,'’^])",
        lambda m: m[1].replace(m[2], ""),
    ),
    (r"^\s*(-?) ?\\?([$€£]) ?(-?[0-9.,]*[0-9])\.?\s*$", lambda m: m[1] + m[3] + CURRENCIES[m[2]]),  # $5, not $5$
    (r"= ?([-+]?(?:\\?[$€£])?[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?![0-9,])", lambda m: "= " + m[1].replace(",", "")),
    (r"√ *([0-9]+)|(?<![\\A-Za-z])sqrt *\(([^()]*)\)", r"\\sqrt{\1\2}"),
    (r"(?<=[0-9]) ?(?:\{,\}|,? ?\\!|\\,) ?(?=[0-9]{3}(?![0-9]))", ""),  # 1{,}234, 1,\!234 and 1\,234
    (r"\\([A-Za-z]+)", lambda m: COMMANDS.get(m[1], m[0])),
    (r"([<>!]|\\not *)=", lambda m: {"<": r" \le ", ">": r" \ge "}.get(m[1], r" \ne ")),
    (r"\\\{ *\\\}", r"\\emptyset"),
    (r"\\begin\{(?:[pb]?matrix\}|array\} *\{[^{}]*\})", r"\\matrix "),
    (r"\\end\{(?:[pb]?matrix|array)\}", r"\\endmatrix "),
    (r"\^ *(?:\\circ|\{ *\\circ *\})|(?<!\\)\\[()\[\],;:! ]|\*\*|\\?[$%€£¥₹₩₱°`~\"“”]", " "),
    (r"\\(?:text[a-z]*|math(?:bf|it|rm)|mbox|operatorname|boldsymbol) *\{([^{}]*)\}", r" \1 "),
    (r"([_^]) *(-?[0-9]+)", r"\1{\2}"),  # x^10 is meant as x^{10}
    (r"(?<=[0-9]) *(?:\\cdot|\\times|\*) *\{?10\}? *\^ *\{ *(-?[0-9]+) *\}(?![0-9])", r"e\1"),  # 3 \times 10^{-5}
    (r"(?<![0-9.}])10 *\^ *\{ *(-?[0-9]+) *\}(?![0-9])", r"1e\1"),
    (r"(?i)(?<=[0-9 ])([ap])\.?m\b\.?", lambda m: f" {m[1].lower()}m "),  # 4:30 p.m.
    (r",? *(?<![\\\w])(and|or)\b", r" \\\1 "),
    (r"^\s*(?:(?:=|is\b)\s*)?(?:(?:USD?|EUR|GBP|JPY|CNY|INR|CAD|AUD|CHF|Rs\.?)\s*(?=[-+.0-9]))?", ""),
]
DRESS = [(re.compile(pattern), replacement) for pattern, replacement in DRESS]

# [0-9] rather than \d, which also matches the digits of other scripts.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}|[0-9]+)"  # 1,234,567 and 12,34,567
NUMBER = rf"(?:{WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
FRACTION = re.compile(rf"\\frac *([0-9]|\{{ *[+-]?{NUMBER} *\}}) *([0-9]|\{{ *{NUMBER} *\}})")
RATIONAL = re.compile(rf"([+-]?) ?(?:([0-9]+) (?=[0-9]+ ?/))?({NUMBER})(?: ?/ ?({NUMBER}))?")  # 5, -1/2, 1 1/2
NAME = re.compile(  # x, x_1, f(x), (x, y), AB, \theta, \angle ABC, area
    r"[A-Za-z](?:_\{?\w+\}?|\(\w\))?|\([a-z](?:, ?[a-z])+\)|[A-Z]{2}|\\(?:angle )?[A-Za-z]+|[A-Za-z]{3,}"
)
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
OPENING, CLOSING = {"{", "(", "[", r"\{", r"\langle", r"\matrix"}, {"}", ")", "]", r"\}", r"\rangle", r"\endmatrix"}
SEPARATORS = {",", ";", r"\and", r"\or"}
RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\notin"}


def canonical(text: str, apart: bool = False) -> tuple[Fraction | tuple | str | None, str | None]:
    r"""The value of `text`, one for all ways to write it that are known here, and its unit or None.

    A Fraction; a tuple of a kind and of such values, in order for "(1, 2)", "[0, 1)", matrices and relations, sorted
    for sets, unions, "1, 2" and "\pm 1", with its name for "x = 5"; a string for all else; None for what is empty or
    too long.  apart: a letter that touches a number is its unit, 5m is 5 m; else it is algebra.
    """
    text = plain(text) if len(text) <= MAX_CHARACTERS else ""
    text = LETTER.sub(" ", text) if apart else text
    if max(depths(text), default=0) > MAX_DEPTH:
        return written(text), None
    text, unit = split_unit(text)
    return value(text), unit


def unnamed(found):
    """The value alone of "x = 2", "f(x) = 2y", "x = 1, x = 2" and "x = 1, 2"; all else as it is, "x = 1, y = 2" too."""
    parts = found[1:] if isinstance(found, tuple) and found[0] == "list" else (found,)
    named = [part for part in parts if isinstance(part, tuple) and part[0] == "named"]
    values = [part[2] if part in named else part for part in parts]
    if len({name for _, name, _ in named}) != 1 or any(isinstance(v, str) and len(v) == 1 for v in values):
        return found  # B = A names no choice
    return values[0] if len(parts) == 1 else collected("list", values)


def plain(text: str) -> str:
    """`text` without typesetting."""
    text = text.translate(SIGNS)
    for pattern, replacement in DRESS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    return text[:-1].rstrip() if text.endswith((".", ",", ";")) else text


def value(text: str):
    """What a plain text says, see `canonical`."""
    text = text.strip()
    if not text or (number := rational(text)) is not None:
        return number if text else None
    parts, signs = split(text, SEPARATORS)
    parts = [part.replace(r"\pm", sign) for part in parts for sign in ("+-" if part.count(r"\pm") == 1 else [r"\pm"])]
    if len(parts) > 1:
        values = [value(part) for part in parts]
        orders = any(isinstance(v, tuple) and v[0] == "relation" for v in values)  # "x < 1 or x > 3" is not "and"
        return collected("list" + " ".join(sorted(set(signs))) * orders, values)
    sides, signs = split(text, {r"\approx"})
    if signs:
        return value(sides[0])
    sides, signs = split(text, RELATIONS)
    if signs:
        values, name = [value(side) for side in sides], NAME.fullmatch(sides[0].strip())
        if set(signs) in ({"="}, {r"\in"}) and values.count(values[-1]) >= len(signs):  # x = 1/2 = 0.5, 1/2 = 0.5
            if values[0] == values[-1]:
                return values[0]
            if name and not NO_UNIT.search(name[0]):
                return "named", written(sides[0]), values[-1]
        return "relation", " ".join(signs), *values
    parts, signs = split(text, {r"\cup"})
    if signs:
        return collected("union", map(value, parts))
    tokens = TOKEN.findall(text)
    if tokens[0] not in OPENING or tokens[-1] not in CLOSING or 0 in depths(text)[:-1]:
        return written(text)
    kind, inside = tokens[0] + tokens[-1], "".join(tokens[1:-1])
    if tokens[0] == r"\matrix":
        rows = [split(row, {"&"})[0] for row in split(inside, {r"\\"})[0] if row.strip()]
        return "matrix", *(("row", *map(value, row)) for row in rows)
    values = [value(part) for part in split(inside, SEPARATORS)[0]]
    if kind == r"\{\}" or (kind == "{}" and len(values) > 1):
        return collected("list", values)
    if len(values) == 1 and (kind in ("()", "{}") or inside.strip().startswith(r"\matrix")):
        return values[0]
    return kind, *values


def rational(text: str) -> Fraction | None:
    r"""The number, if a plain text is one: "-5", "1,000.5", "1e3", "1/2", "\frac12", "1 1/2"."""
    text = FRACTION.sub(lambda m: f" {m[1].strip('{ }')}/{m[2].strip('{ }')} ", text)
    found = RATIONAL.fullmatch(" ".join(text.split()))
    if found is None or any(abs(int(exponent)) > MAX_EXPONENT for exponent in re.findall("[eE]([+-]?[0-9]+)", text)):
        return None
    whole, over, under = (
        Fraction((found[i] or default).replace(",", "")) for i, default in ((2, "0"), (3, ""), (4, "1"))
    )
    if under == 0 or (whole and over >= under):
        return None
    return (whole + over / under) * (-1 if found[1] == "-" else 1)


def written(text: str) -> str:
    """A formula or words, the same however they are spaced and braced."""
    # Sunday is sunday, but AB is not ab.
    text = re.sub(r"(?<![\\A-Za-z])[A-Z](?=[a-z]{2}|[a-z] [a-z])", lambda m: m[0].lower(), text)
    text = text.lower() if text.lower() in ("yes", "no", "true", "false") else text
    text = re.sub(r"(?<![0-9]) | (?![0-9])", "", text)
    text = re.sub(r"(?<!\\)\{([^{}\\])\}", r"\1", text)  # \frac{1}{2} is \frac12
    text = re.sub(r"(?:\\cdot|\\times|\*)(?![-+0-9])|(?:(?<=[{(\[,])|^)\+", "", text)
    return re.sub(r"\\(?=[A-Za-z])", "", text)  # \ln is ln


def collected(kind: str, values) -> tuple:
    """The values, sorted if their order means nothing."""
    return kind, *(sorted(values, key=repr) if kind.startswith(("list", "union")) else values)


def split(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """The text cut at the separators that stand in no brackets, and these."""
    parts, found = [""], []
    for token, depth in zip(TOKEN.findall(text), depths(text), strict=True):
        if token in separators and depth == 0:
            parts.append("")
            found.append(token)
        else:
            parts[-1] += token
    return parts, found


def depths(text: str) -> list[int]:
    """The depth of brackets after each token: one that opens counts itself, one that closes does not."""
    return list(accumulate((token in OPENING) - (token in CLOSING) for token in TOKEN.findall(text)))
