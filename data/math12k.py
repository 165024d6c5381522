r"""Math12k (Hendrycks et al., 2021, split by Lightman et al., 2023): 12,000 train problems, MATH-500 to test; MIT.

A folder given as data_dir may hold a part of the train split instead, as math12k_part.jsonl.
"""

import os
from pathlib import Path

from data.files import Source, find, read_problems
from data.problem import Problem

# Kept in Git LFS, whose content the media host serves.
BASE = "https://media.githubusercontent.com/media/openai/prm800k/7ecc794703b2877f63226f2477a49b34f9b25163/"
SOURCES = {
    "train": Source(
        name="math12k_train.jsonl",
        url=BASE + "prm800k/math_splits/train.jsonl",
        sha256="90d96daeac3fe343ebb1e22ce93dd99690f75983e957f88de42f87cffe1e8076",
        records=12000,
    ),
    "test": Source(
        name="math500.jsonl",
        url=BASE + "prm800k/math_splits/test.jsonl",
        sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        records=500,
    ),
}
FIELDS = {"problem": str, "solution": str, "answer": str}
PART = "math12k_part.jsonl"


def load(split: str, data_dir: str | Path | None = None) -> list[Problem]:
    """The rationale is the published solution, and the answer again behind the marker that the prompt asks for."""
    source = SOURCES[split]
    part = Path(os.path.expanduser(data_dir)) / PART if data_dir is not None else None
    if split == "train" and part is not None and part.is_file() and not part.with_name(source.name).is_file():
        path = part
    else:
        path = find(source, data_dir)
    return read_problems(path, FIELDS, to_problem, source.records)


def to_problem(record: dict) -> Problem:
    answer = " ".join(record["answer"].split())  # a marker ends with its line
    return Problem(record["problem"], answer, f"{record['solution']}\n#### {answer}")
