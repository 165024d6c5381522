"""A data set of the user's own: JSON lines, or a JSON list, with a question and its answer in each record.

    {"question": "Two and two?", "answer": 4}
    {"problem": "Factor $x^2 - 1$.", "answer": "(x+1)(x-1)", "solution": "..."}

A question is called question or problem; an answer is the answer alone, a number or text; a solution is needed by a
warm-up only. Other fields are not looked at. To train on, one question in ten is held back for the test split, by a
checksum, so that the split stays the same when the file grows and a question that comes twice is on one side.
"""

import os
from pathlib import Path

from data.arith import split_of
from data.files import read_problems
from data.problem import Problem


def load(path: str | Path, split: str) -> list[Problem]:
    """split: train, test, or all. Raises FileNotFoundError, or ValueError that names the file and the line."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines with a question and an answer each")
    problems = read_problems(path, {}, to_problem)
    chosen = [problem for problem in problems if split in ("all", split_of(problem.question))]
    if not chosen:
        raise ValueError(
            f"{path}: {len(problems)} problems, none in the {split} split, which one question in ten falls to by a "
            "checksum; expected more of them"
        )
    return chosen


def to_problem(record: dict) -> Problem:
    if not isinstance(record, dict):
        raise ValueError(f"expected a record, got {repr(record)[:80]}")
    question = record.get("problem") if record.get("question") is None else record["question"]
    answer, solution = record.get("answer"), record.get("solution")
    if not isinstance(question, str):
        raise ValueError(f"expected a text 'question' or 'problem', got {repr(record)[:80]}")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise ValueError(f"expected a text or a number 'answer', got {repr(answer)[:80]}")
    if not isinstance(solution, str | None):
        raise ValueError(f"expected a text 'solution', got {repr(solution)[:80]}")
    answer = " ".join(str(answer).split())  # a marker ends with its line
    return Problem(question, answer, f"{solution}\n#### {answer}" if solution else "")
