"""A data set of the user's own: JSON lines, or a JSON list, with a question and its answer in each record.

    {"question": "Two and two?", "answer": 4}
    {"problem": "Factor $x^2 - 1$.", "answer": "(x+1)(x-1)", "solution": "..."}
    {"context": "Tom has 2 pens and buys 3.", "question": "How many has he?", "final_answer": ["5"]}

A question is called question or problem; what stands before it (CONTEXT) is put in front. An answer is the answer
alone, a number or text, called answer or final_answer; without one, it is what the solution marks, \\boxed{…} or ####.
A solution is needed by a warm-up only. A checksum of the question puts one in ten into the test split: it stays the
same when the file grows, and a question that comes twice is on one side.
"""

import difflib
import os
import warnings
from pathlib import Path

from data.arith import split_of
from data.files import read_problems
from data.problem import Problem
from reward import extract_answer

CONTEXT = ("body", "context", "passage")
CHOICES = ("choices", "options")
KNOWN = (*CONTEXT, *CHOICES, "question", "problem", "answer", "final_answer", "solution")
SUSPECT = {  # names of fields that may be a part of the problem, and are not read
    *("text", "input", "prompt", "premise", "story", "background", "description", "facts", "conditions", "hint"),
    *("table", "image", "image_1", "images", "figure", "diagram", "subquestion", "questions", "problem_statement"),
}


def load(path: str | Path, split: str) -> list[Problem]:
    """split: train, test, or all. Raises FileNotFoundError, or ValueError that names the file and the line."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines with a question and an answer each")
    unread = set()
    problems = read_problems(path, {}, lambda record: unread.update(suspects(record)) or to_problem(record))
    if unread:
        names = ", ".join(sorted(unread))
        warnings.warn(f"{path}: not read, though it may belong to the problems: {names}", stacklevel=1)
    chosen = [problem for problem in problems if split in ("all", split_of(problem.question))]
    if not chosen:
        raise ValueError(
            f"{path}: {len(problems)} problems, none in the {split} split (a checksum puts one in ten into test); "
            "expected more of them"
        )
    return chosen


def suspects(record) -> list[str]:
    """The fields that are not read and have a suspicious name, or nearly that of one which is read."""
    if not isinstance(record, dict):
        return []
    unread = [name for name, value in record.items() if value and name not in KNOWN]
    return [name for name in unread if name in SUSPECT or difflib.get_close_matches(name, KNOWN, 1, 0.8)]


def to_problem(record: dict) -> Problem:
    if not isinstance(record, dict):
        raise ValueError(f"expected a record, got {repr(record)[:80]}")
    record = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in record.items()
    }
    given = {name: value for name, value in record.items() if value is not None}
    question, solution = given.get("question", given.get("problem")), given.get("solution")
    if not isinstance(question, str):
        raise ValueError(f"expected a text 'question' or 'problem', got {repr(record)[:80]}")
    if choices := [name for name in CHOICES if given.get(name)]:
        raise ValueError(f"the field {choices[0]!r} is not read; write the choices into the question")
    before = [given[name] for name in CONTEXT if given.get(name)]
    if not all(isinstance(text, str) for text in before):
        raise ValueError(f"expected a text before the question, got {repr(before)[:80]}")
    if not isinstance(solution, str | None):
        raise ValueError(f"expected a text 'solution', got {repr(solution)[:80]}")
    answer = given.get("answer", given.get("final_answer", extract_answer(solution or "")))
    if answer is None:
        raise ValueError(f"expected an 'answer', got the fields {', '.join(record)}")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise ValueError(f"expected a text or a number 'answer', got {repr(answer)[:80]}")
    answer = " ".join(str(answer).split())  # a marker ends with its line
    return Problem("\n".join([*before, question]), answer, f"{solution}\n#### {answer}" if solution else "")
