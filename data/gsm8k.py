"""GSM8K (Cobbe et al., 2021): 7,473 train and 1,319 test problems with worked solutions, MIT licence."""

import re
from pathlib import Path

from data.files import Source, find, number, read_problems
from data.problem import Problem

BASE = "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
SOURCES = {
    "train": Source(
        name="gsm8k_train.jsonl",
        url=BASE + "grade_school_math/data/train.jsonl",
        sha256="17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        records=7473,
    ),
    "test": Source(
        name="gsm8k_test.jsonl",
        url=BASE + "grade_school_math/data/test.jsonl",
        sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        records=1319,
    ),
}


FIELDS = {"question": str, "answer": str}


def load(split: str, data_dir: str | Path | None = None) -> list[Problem]:
    return read_problems(find(SOURCES[split], data_dir), FIELDS, to_problem, SOURCES[split].records)


def to_problem(record: dict) -> Problem:
    rationale, marker, answer = record["answer"].rpartition("####")
    if not marker:
        raise ValueError(f"expected '#### ' and a number at the end of the answer, got {record['answer'][-80:]!r}")
    answer = number(answer.strip()).replace(",", "")
    rationale = re.sub(r"<<[^>]*>>", "", rationale).strip()  # the calculator's notes: 48/2 = <<48/2=24>>24
    return Problem(record["question"].strip(), answer, f"{rationale}\n#### {answer}")
