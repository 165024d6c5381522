"""A data set of the user's own: JSON lines, or a JSON list, with a question and its answer in each record.

    {"question": "Two and two?", "answer": 4}
    {"problem": "Factor $x^2 - 1$.", "answer": "(x+1)(x-1)", "solution": "..."}
    {"context": "Tom has 2 pens and buys 3.", "question": "How many has he?", "final_answer": ["5"]}

A question is called question or problem, in capitals or not; what stands before it (CONTEXT) is put in front. An answer
is the answer alone, a number or text, called answer or final_answer; without one, it is what the solution marks,
\\boxed{…} or ####. A solution is needed by a warm-up only. A checksum of the question puts one in ten into the test
split: it stays the same when the file grows, and a question that comes twice is on one side.
"""

import os
import re
import warnings
from pathlib import Path

from data.arith import split_of
from data.files import read_problems
from data.problem import Problem
from reward import extract_answer

CONTEXT = ("body", "context", "passage")
CHOICES = {"choices", "options", "answer_choices", "a", "choice_a", "option_a", "optiona", "option1", "opa"}
READ = {*CONTEXT, "question", "problem", "answer", "final_answer", "solution"}
PHRASE = re.compile("answer is", re.IGNORECASE)  # "… and the answer is correct": a box or #### comes first
TABLES = {".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet", ".xlsx": "read_excel"}  # of pandas


def load(path: str | Path, split: str) -> list[Problem]:
    """split: train, test, or all. Raises FileNotFoundError, or ValueError that names the file and the line."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected JSON lines with a question and an answer each")
    if reader := TABLES.get(path.suffix.lower()):
        lines = path.with_suffix(".jsonl").name
        raise ValueError(
            f"{path}: expected JSON lines; make them with pandas: {reader}({path.name!r}).to_json({lines!r}, "
            "orient='records', lines=True)"
        )
    unread = set()
    problems = read_problems(path, {}, lambda record: to_problem(record, unread))
    if unread:
        warnings.warn(f"{path}: fields that are not read: {', '.join(sorted(unread)[:30])}", stacklevel=1)
    first = {}  # the spelling of each question that came first says where all go
    chosen = [p for p in problems if split in ("all", split_of(first.setdefault(p.key, p.question)))]
    if not chosen:
        raise ValueError(
            f"{path}: none of its problems ({len(problems)}) is in the {split} split, since a checksum puts one in ten "
            "into test; expected more of them"
        )
    return chosen


def to_problem(record: dict, unread: set[str]) -> Problem:
    """The problem of a record. Adds the names of fields that hold text and are not read to `unread`."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a record, got {repr(record)[:80]}")
    given = {}
    for field, value in record.items():
        name = "_".join(field.lower().replace("-", " ").split())  # Body; Final Answer, final-answer
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if name in CHOICES and value not in (None, "", [], {}):
            raise ValueError(f"the field {field!r} is not read; write the choices into the question")
        if name in READ and value is not None and given.setdefault(name, value) != value:
            raise ValueError(f"two fields are called {name!r}, and differ")
        if name not in READ and value and isinstance(value, str | list | dict):
            unread.add(field)
    for name, other in (("question", "problem"), ("answer", "final_answer")):
        if {name, other} <= given.keys() and str(given[name]) != str(given[other]):
            unread.add(other)
    question, solution = given.get("question", given.get("problem")), given.get("solution")
    if not isinstance(question, str):
        raise ValueError(f"expected a text 'question' or 'problem', got {repr(record)[:80]}")
    before = [given[name] for name in CONTEXT if given.get(name)]
    if not all(isinstance(text, str) for text in before):
        raise ValueError(f"expected a text before the question, got {repr(before)[:80]}")
    if not isinstance(solution, str | None):
        raise ValueError(f"expected a text 'solution', got {repr(solution)[:80]}")
    marked = extract_answer(PHRASE.sub("answer", solution or "")) or extract_answer(solution or "")  # its box, if any
    answer = given.get("answer", given.get("final_answer", marked))
    if answer is None:
        raise ValueError(f"expected an 'answer', got the fields {', '.join(record)}")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise ValueError(f"expected a text or a number 'answer', got {repr(answer)[:80]}")
    answer = " ".join(str(answer).split())  # a marker ends with its line
    return Problem("\n".join([*before, question]), answer, f"{solution}\n#### {answer}" if solution else "")
