"""Exercise 8: a data set of one's own. The page is 08.md."""

import json
import random
import re
from collections import Counter
from fractions import Fraction

import pytest

import data
from answers import canonical
from data.own import split_of
from reward import is_correct

NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
EQUATION = re.compile(rf"({NUMBER}) ([-+*/]) ({NUMBER}) = ({NUMBER})")
LEAST, VALUES, SHARE = 200, 20, 0.2  # problems; different answers; the share that the most frequent one may have


@pytest.fixture(scope="module")
def path(answer, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.jsonl"
    answer.write(path)
    assert path.is_file(), f"expected write(path) to write {path.name}, found nothing"
    return path


@pytest.fixture(scope="module")
def problems(path):
    """(line, record, problem) of each line, as data.load reads it; a broken line is named by its error."""
    lines = [(n, line) for n, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if line.strip()]
    loaded = data.load(str(path), "all")
    return [(n, json.loads(line), problem) for (n, line), problem in zip(lines, loaded, strict=True)]


def test_there_are_enough(problems):
    assert len(problems) >= LEAST, f"expected {LEAST} problems or more, got {len(problems)}"


def test_it_is_the_same_file_every_time(answer, path, tmp_path):
    """A run is resumed on the problems that it began with, and a figure is of some problems in particular."""
    random.seed(1234)
    answer.again().write(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes(), "expected the same file again, got another one"


def test_no_question_comes_twice(problems):
    """However it is spelt: with other capitals or spaces it would be in both splits, perhaps."""
    seen = {}
    for n, _, problem in problems:
        question = " ".join(re.findall(r"\w+", problem.question.lower()))
        assert question not in seen, (
            f"line {n}: expected a new question, got that of line {seen[question]}: {question!r}"
        )
        seen[question] = n


def test_the_splits_are_disjoint_and_both_there(path, problems):
    train, test = ({p.question for p in data.load(str(path), split)} for split in ("train", "test"))
    assert not train & test and len(train) + len(test) == len(problems), f"got {len(train)} and {len(test)} questions"
    assert len(test) >= 10, f"expected 10 test problems or more, got {len(test)}; a checksum puts one in ten there"
    assert all(split_of(question) == "test" for question in test)


def test_every_rationale_earns_1(problems):
    for n, record, problem in problems:
        assert record.get("solution"), f"line {n}: expected a 'solution' to learn from, got the fields {list(record)}"
        assert is_correct(problem.rationale, problem.answer), (
            f"line {n}: expected a rationale that earns 1, got {problem.rationale!r} for the answer {problem.answer!r}"
        )


def test_every_step_is_right_and_the_last_one_is_the_answer(problems):
    """The marker behind a rationale is the loader's; this is about what the solution itself says."""
    work_out = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
    for n, record, problem in problems:
        steps = EQUATION.findall(record["solution"])
        assert steps, f"line {n}: expected a step such as '3 + 4 = 7' in the solution, got {record['solution']!r}"
        for a, sign, b, c in steps:
            result = work_out[sign](Fraction(a), Fraction(b)) if sign != "/" or Fraction(b) else "undefined"
            assert result == Fraction(c), f"line {n}: expected {a} {sign} {b} = {result}, got {c}"
        assert canonical(steps[-1][3])[0] == canonical(problem.answer)[0], (
            f"line {n}: expected the last step's {steps[-1][3]} as the answer, got {problem.answer}"
        )


def test_the_first_step_is_about_the_question(problems):
    """A question that lacks the numbers cannot be solved."""
    for n, record, problem in problems:
        a, _, b, _ = EQUATION.search(record["solution"]).groups()
        missing = {a, b} - set(re.findall(NUMBER, problem.question))
        assert not missing, f"line {n}: the first step takes {', '.join(missing)}, which is not in {problem.question!r}"


def test_the_answers_cannot_be_guessed(problems):
    answers = Counter(problem.answer for _, _, problem in problems)
    (top, often), n = answers.most_common(1)[0], len(problems)
    assert len(answers) >= VALUES, f"expected {VALUES} different answers or more, got {len(answers)}"
    assert often <= SHARE * n, (
        f"expected each answer in {SHARE:.0%} of the problems at most, got {top} in {often} of {n}"
    )
