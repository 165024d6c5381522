r"""How far reward.py agrees with math-verify, by kind of answer.

    python -m docs.grading --data-dir DATA --rows held-out        # some minutes
    python -m docs.grading --data-dir DATA --rows development --show 20
    python -m docs.grading --data-dir DATA --copied               # is boxing a formula of the question paid?
    python -m docs.grading --fuzz 100000                          # odd strings: exceptions, and the time

Both are asked whether a text is a reference answer of MATH. Five groups of pairs:

    itself       the reference
    rewritten    the reference in another dress, REWRITINGS, which a mathematician would not tell from it
    calculated   the same value in a form that takes algebra to know, CALCULATED
    spoilt       the reference with one thing changed, SPOILINGS: another answer
    another      the reference of another problem, the closest in spelling

The rules of reward.py were written with a look at one half of the file of train problems, by a checksum; the other half
and MATH-500 are the held-out rows.
"""

import argparse
import json
import random
import re
import statistics
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from fractions import Fraction
from multiprocessing import Pool
from pathlib import Path

from tqdm import tqdm

import data
from answers import canonical, unnamed
from data.problem import Problem
from reward import is_correct
from support.graders import MathVerify

FRAC = r"\\frac\{(\d+)\}\{(\d+)\}"


def substitute(pattern: str, replacement):
    """A rewriting that applies where the pattern is found."""
    return lambda answer: re.sub(pattern, replacement, answer)


def whole(pattern: str, rewrite):
    """A rewriting that applies to answers which match the pattern wholly."""
    return lambda answer: rewrite(re.fullmatch(pattern, answer)) if re.fullmatch(pattern, answer) else answer


def decimal(m: re.Match) -> str:
    n, d = int(m[2]), int(m[3])
    exact = d and 10**6 % d == 0
    return f"{m[1]}{float(Fraction(n, d)):.10g}" if exact else m[0]


def mixed(m: re.Match) -> str:
    n, d = int(m[2]), int(m[3])
    return rf"{m[1]}{n // d}\frac{{{n % d}}}{{{d}}}" if d and n > d and n % d else m[0]


def items(answer: str) -> list[str]:
    """The parts of a list without brackets; not of 10,000."""
    return (
        [answer]
        if re.search(r"[()\[\]]|\\text|\d(,|,\\!|\{,\})\d{3}(?!\d)", answer)
        else re.split(r"(?<!\\), *", answer)
    )


REWRITINGS = {
    r"\dfrac": substitute(r"\\frac", r"\\dfrac"),
    r"\tfrac": substitute(r"\\frac", r"\\tfrac"),
    r"\frac12": substitute(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
    "1/2": whole(rf"(-?){FRAC}", lambda m: f"{m[1]}{m[2]}/{m[3]}"),
    r"\frac{-1}{2}": whole(rf"-{FRAC}", lambda m: rf"\frac{{-{m[1]}}}{{{m[2]}}}"),
    "0.5": whole(rf"(-?){FRAC}", decimal),
    r"1\frac{1}{2}": whole(rf"(-?){FRAC}", mixed),
    "2.0": whole(r"-?\d+", lambda m: m[0] + ".0"),
    "1,000": whole(r"\d{4,}", lambda m: f"{int(m[0]):,}"),
    "1{,}000": whole(r"\d{4,}", lambda m: f"{int(m[0]):,}".replace(",", "{,}")),
    r"5 \text{ cm}": whole(r"-?\d+(\.\d+)?", lambda m: m[0] + r"\text{ cm}"),
    r"5\%": whole(r"\d+(\.\d+)?", lambda m: m[0] + r"\%"),
    r"\$5": whole(r"\d+(\.\d+)?", lambda m: r"\$" + m[0]),
    r"5^\circ": whole(r"\d+(\.\d+)?", lambda m: m[0] + r"^\circ"),
    "minus sign": substitute("-", "\N{MINUS SIGN}"),
    "$x$": lambda answer: f"${answer}$",
    r"\( x \)": lambda answer: rf"\( {answer} \)",
    "x.": lambda answer: answer.removesuffix(".") + ".",
    "x = 5": whole(r"-?\d+|-?\\.?frac[^=]*|\d*\\(?:sqrt|pi)[^=]*", lambda m: "x = " + m[0]),
    r"\boxed{x}": lambda answer: rf"\boxed{{{answer}}}",
    r"\left( \right)": substitute(
        r"(?<!left)(?<!left )([(\[])([^()\[\]A-Z]*)(?<!right)(?<!right )([)\]])", r"\\left\1\2\\right\3"
    ),
    r"( )": substitute(r"\\(?:left|right)(?![a-z])", ""),
    "spaces": substitute(r"(?<=[\w})])([-+=]|,(?!\\!|\d{3}(?!\d)|\}))(?=[\w\\{(-])", r" \1 "),
    "no spaces": lambda answer: re.sub(r"(?<![a-zA-Z\d]) +| +(?![a-zA-Z\d])", "", answer),
    r"\,": substitute(r"(?<=\d) ?(?=\\(?:pi|sqrt))", r"\\,"),
    r"\sqrt2": substitute(r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    r"\sqrt{2}": substitute(r"\\sqrt(\d)", r"\\sqrt{\1}"),
    r"2 \cdot \pi": substitute(r"(?<=\d) ?(?=\\(?:pi|sqrt))", r" \\cdot "),
    "π, √, ∞": lambda answer: re.sub(r"\\sqrt\{(\d+)\}", r"√\1", answer).replace(r"\pi", "π").replace(r"\infty", "∞"),
    "x^{2}": substitute(r"\^(\d)", r"^{\1}"),
    "another order": lambda answer: ", ".join(reversed(items(answer))) if len(items(answer)) > 1 else answer,
    "1 and 2": lambda answer: r"\text{ and }".join(items(answer)) if len(items(answer)) == 2 else answer,
    "bmatrix": substitute("pmatrix", "bmatrix"),
    r"\text{A}": whole(r"[A-Z]|[A-Z]?[a-z]{3,}", lambda m: rf"\text{{{m[0]}}}"),
    "A": substitute(r"\\text\{([^{}]*)\}", r"\1"),
    "(A)": whole(r"\\text\{([A-F])\}|([A-F])", lambda m: f"({m[1] or m[2]})"),
    "b + a": whole(
        r"(\d*\\sqrt\{\d+\}|\d+|\d*\\pi|\d*[a-z]) ?\+ ?(\d*\\sqrt\{\d+\}|\d+|\d*\\pi|\d*[a-z])",
        lambda m: f"{m[2]} + {m[1]}",
    ),
}

CALCULATED = {
    "6 + 1": whole(r"\d+", lambda m: f"{int(m[0]) - 1} + 1"),
    r"\frac{2}{3}\pi": substitute(
        r"\\frac\{(\d*) *(\\pi|\\sqrt\{\d+\})\}\{(\d+)\}", lambda m: rf"\frac{{{m[1] or 1}}}{{{m[3]}}}{m[2]}"
    ),
    r"\sqrt{12}": whole(r"(\d+) *\\sqrt\{(\d+)\}", lambda m: rf"\sqrt{{{int(m[1]) ** 2 * int(m[2])}}}"),
    "(x+2)(x+1)": whole(r"(.*[^(])?(\([^()]+\)) *(\([^()]+\))", lambda m: f"{m[1] or ''}{m[3]}{m[2]}"),
    "y = 2x": whole(r"([a-z]) = ([^=]*)", lambda m: f"{m[2]} = {m[1]}"),
    r"\frac{6}{4}\pi": substitute(
        r"\\frac\{(\d+) *(\\pi|\\sqrt\{\d+\})\}\{(\d+)\}",
        lambda m: rf"\frac{{{2 * int(m[1])}{m[2]}}}{{{2 * int(m[3])}}}",
    ),
}

SPOILINGS = {
    "another digit": lambda answer: re.sub(r"\d(?!.*\d)", lambda m: str((int(m[0]) + 1) % 10), answer, count=1),
    "another first digit": lambda answer: re.sub(r"[1-8]", lambda m: str(int(m[0]) + 1), answer, count=1),
    "another sign": lambda answer: answer[1:] if answer[0] == "-" else re.sub(r"^(?=[1-9]|\\frac|\\sqrt)", "-", answer),
    "+ for -": lambda answer: re.sub(r"(?<=[\w}]) ?([-+])", lambda m: "+" if m[1] == "-" else "-", answer, count=1),
    "a digit more": lambda answer: re.sub(r"(\d+)(?!.*\d)", r"\g<1>3", answer, count=1),
    "one less": lambda answer: ", ".join(items(answer)[1:]) or re.sub(r"^\(([^,]*),(?=.*,)", "(", answer),
    "one more": lambda answer: (
        re.sub(r"\)$", ", 77)", answer) if re.fullmatch(r"\([^()]*,[^()]*\)", answer) else answer + ", 77"
    ),
    "[ for (": lambda answer: (
        re.sub(r"^(\\left)?\(", r"\1[", answer) if re.search(r"infty", answer) is None and "," in answer else answer
    ),
    "without pi": lambda answer: answer.replace(r"\pi", ""),
    "without i": whole(r"([^a-z]*)(?<![a-z])i", lambda m: m[1]),
    "without root": lambda answer: (
        re.sub(r"\\sqrt\{(\d+)\}", r" \1", answer) if not re.search(r"\d *\\sqrt", answer) else answer
    ),
    "turned over": lambda answer: re.sub(
        FRAC, lambda m: rf"\frac{{{m[2]}}}{{{m[1]}}}" if m[1] != m[2] else m[0], answer, count=1
    ),
    "another power": lambda answer: re.sub(r"\^\{?(\d+)\}?", lambda m: f"^{{{int(m[1]) + 1}}}", answer, count=1),
    "another letter": whole(r"(\\text\{)?([A-E])(\})?", lambda m: (m[1] or "") + chr(ord(m[2]) + 1) + (m[3] or "")),
    "all of 0 to 100": lambda answer: ", ".join(map(str, range(101))),
}

SAME = ("itself", "rewritten", "calculated")
KINDS = {  # the first that matches
    "matrix": r"\\begin\{.matrix",
    "words": r"\\text|\\mbox|^\(?[A-Za-z]{3,}\)?$|^[A-F]$",
    "interval or union": r"\\infty|\\cup|^(?:\\left)? ?\[|\]$",
    "tuple": r"^(?:\\left)? ?\([^()]*,.*\)$",
    "equation": r"[=<>]|\\l?g?eq?(?![a-z])",
    "list": r",(?!\\!)(?!\d{3}(?!\d))",
    "base": r"_\{?\d+\}?$",
    "integer": r"^-?[\d,!\\]+$",
    "decimal, degrees, money, percent": r"^[-\\$]*[\d,!\\]*\.?\d+ *(?:\\?%|\^\\circ|\^\{\\circ\})?$",
    "mixed number": r"^-?\d+ *\\frac",
    "fraction": r"^-? *(?:\\[dtc]?frac *(?:\{-?[\d,!\\]+\}|\d) *(?:\{[\d,!\\]+\}|\d)|\d+/\d+)$",
    "root or pi": r"^(?:[-+*/\d(){} .]|\\[dtc]?frac|\\sqrt(?:\[\d\])?|\\pi|\\cdot|\\!|\^\{?\d+\}?)*$",
    "complex": r"^(?:[-+*/\d(){} .]|\\[dtc]?frac|\\sqrt|i)*$",
    "other formula": r"",
}


def kind(answer: str) -> str:
    return next(name for name, pattern in KINDS.items() if re.search(pattern, answer))


def held_out(problem: str) -> bool:
    return zlib.crc32(problem.encode()) % 2 == 1


def pairs(answers: list[str]) -> list[tuple[str, str, str, str]]:
    """(group, what was done, text, reference), each pair once."""
    different = sorted(set(answers))
    found = {}
    for answer in different:
        found[answer, answer] = ("itself", "itself")
        for group, changes in (("rewritten", REWRITINGS), ("calculated", CALCULATED), ("spoilt", SPOILINGS)):
            for name, change in changes.items():
                found.setdefault((change(answer), answer), (group, name))
    for i, answer in enumerate(different):
        near = different[max(0, i - 40) : i] + different[i + 1 : i + 41]
        near.sort(key=lambda other: -SequenceMatcher(None, answer, other, autojunk=False).ratio())
        for other in near[:6]:
            found.setdefault((other, answer), ("another", "another"))
    return [(*how, text, answer) for (text, answer), how in found.items()]


PIECES = (
    r"""#### answer is \boxed{ \frac \dfrac{1}{2} \sqrt \text{ \left( \right) \begin{pmatrix} \end{pmatrix} \cup \pm \pi
\infty \cdot \circ { } [ ] ( ) \{ \} \ \\ \, $ ** % / , . - + = ^ _ & | < ! ~ e E+ 0 1 42 000 .5 1/2 9^{9^{9^9}} 1e999 x
kg or and""".split()
    + [*" \n\r\0−√π∞∪²٤🍎\u200f\u202e\u2028\ud800", "9" * 50]
)


def strings(n: int, seed: int = 0) -> Iterator[str]:
    """n strings to break a grader with: pieces of answers in any order, one in twenty nested in
    brackets or fractions, and of those one in a hundred a hundred thousand deep."""
    rng = random.Random(seed)
    for i in range(n):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 40)))
        if i % 20 == 0:
            times = 10 ** rng.randrange(1, 6 if i % 2000 == 0 else 3)
            opening, closing = rng.choice(
                (("{", "}"), ("(", ")"), ("\\boxed{", "}"), ("\\frac{1}{", "}"), ("(1, ", ")"))
            )
            text = opening * (times // len(opening) + 1) + text + closing * times
        yield text


def fuzz(n: int) -> dict[str, float]:
    """Seconds of is_correct on each string, marked and as the reference; and how many were right or raised."""
    seconds, raised, right = [], 0, 0
    for text in strings(n):
        start = time.perf_counter()
        try:
            right += is_correct(f"#### {text}", "42") + is_correct(text, text) + is_correct("#### 42", text)
        except Exception:
            raised += 1
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "worst": max(seconds), "raised": raised, "right": right}


def copied(problems: list[Problem]) -> dict[str, int]:
    """How often the first formula of a question is right, for whom, where the answer is no number."""
    grader, counts = MathVerify(), Counter()
    for problem in problems:
        formula = re.search(r"\$+([^$]+)\$+", problem.question)
        if formula and not isinstance(unnamed(canonical(problem.answer)[0]), Fraction):
            text = rf"\boxed{{{formula[1].strip()}}}"
            counts["asked"] += 1
            counts["reward.py"] += is_correct(text, problem.answer)
            counts["--grader math-verify"] += grader.is_correct(text, problem)
            counts["math-verify alone"] += grader.equal(formula[1].strip(), problem.answer)
    return counts


grader = None


def both(pair: tuple) -> tuple[bool, bool]:
    global grader
    grader = grader or MathVerify()
    return is_correct(rf"\boxed{{{pair[2]}}}", pair[3]), grader.equal(pair[2], pair[3])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--fuzz", type=int, help="only try so many strings")
    parser.add_argument("--copied", action="store_true", help="only box the first formula of each question")
    parser.add_argument("--rows", choices=("development", "held-out"), default="held-out")
    parser.add_argument("--show", type=int, default=0, help="disagreements to print of each group and rewriting")
    parser.add_argument("--processes", type=int, default=2)
    a = parser.parse_args()
    if not a.fuzz and not a.data_dir:
        parser.error("expected --data-dir, the folder of math12k_part.jsonl and math500.jsonl")
    if a.fuzz:
        found = fuzz(a.fuzz)
        print(f"{a.fuzz:,} strings, three questions each: {found['raised']} exceptions, median ", end="")
        print(f"{found['median'] * 1e3:.3f} ms, worst {found['worst'] * 1e3:.1f} ms; {found['right']} were right")
        return 0
    if a.copied:
        for name, n in copied(
            [*data.load("math12k", "train", a.data_dir), *data.load("math12k", "test", a.data_dir)]
        ).items():
            print(f"{name}: {n}")
        return 0
    rows = [json.loads(line) for line in (Path(a.data_dir) / "math12k_part.jsonl").open(encoding="utf-8")]
    answers = [row["answer"].strip() for row in rows if held_out(row["problem"]) == (a.rows == "held-out")]
    if a.rows == "held-out":
        answers += [
            json.loads(line)["answer"].strip() for line in (Path(a.data_dir) / "math500.jsonl").open(encoding="utf-8")
        ]
    asked = pairs(answers)
    with Pool(a.processes) as pool:
        said = list(tqdm(pool.imap(both, asked, chunksize=50), total=len(asked), disable=None))
    print(f"{len(answers):,} answers, {len(set(answers)):,} different; {len(asked):,} pairs")
    table("kind of answer", asked, said, lambda pair: kind(pair[3]))
    table("change", asked, said, lambda pair: pair[1])
    shown = Counter()
    for (group, name, text, answer), (ours, theirs) in zip(asked, said, strict=True):
        wanted = group in SAME
        if ours != theirs or ours != wanted:
            shown[group, name, ours, theirs] += 1
            if shown[group, name, ours, theirs] <= a.show:
                print(f"{group}, {name}: reward.py {ours}, math-verify {theirs}: {text!r} for {answer!r}")
    return 0


def table(title: str, asked: list, said: list, of) -> None:
    counts = defaultdict(Counter)
    for pair, (ours, theirs) in zip(asked, said, strict=True):
        for row in (of(pair), "all"):
            same = pair[0] in SAME  # else another answer, unless both say that it is the same
            other = pair[0] == "spoilt" or ours != theirs
            counts[row].update(
                {
                    "n": 1,
                    "agree": ours == theirs,
                    (pair[0], "n"): 1,
                    (pair[0], "agree"): ours == theirs,
                    "missed": same and not ours,
                    "missed by math-verify": same and not theirs,
                    "false": not same and other and ours,
                    "false by math-verify": not same and other and theirs,
                }
            )
    groups = (*SAME, "spoilt", "another")
    print(
        f"\n| {title} | pairs | agree |",
        *(f"{group} |" for group in groups),
        "missed, math-verify | false, math-verify |",
    )
    print("|---" * 10 + "|")
    for row, c in sorted(counts.items(), key=lambda item: (item[0] == "all", -item[1]["n"])):
        cells = [f"{c[g, 'agree']:,} of {c[g, 'n']:,}" if c[g, "n"] else "–" for g in groups]
        missed, false = (f"{c[k]}, {c[k + ' by math-verify']}" for k in ("missed", "false"))
        print(
            f"| {row} | {c['n']:,} | {c['agree'] / c['n']:.1%} |",
            *(f"{cell} |" for cell in cells),
            f"{missed} | {false} |",
        )


if __name__ == "__main__":
    sys.exit(main())
