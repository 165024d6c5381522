"""SVAMP (Patel et al., 2021): 1,000 one- and two-step problems of elementary arithmetic, MIT licence.

There is no official split of it for training: the first 700 problems are ours to train on, the last 300 to test.
"""

import re
from pathlib import Path

from answers import depths
from data.files import Source, find, number, read_problems
from data.problem import Problem

SOURCE = Source(
    name="svamp.json",
    url="https://raw.githubusercontent.com/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/SVAMP.json",
    sha256="5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
    records=1000,
)
FIELDS = {"Body": str, "Question": str, "Equation": str, "Answer": (int, float)}


def load(split: str, data_dir: str | Path | None = None) -> list[Problem]:
    path = find(SOURCE, data_dir)
    problems = read_problems(path, FIELDS, to_problem, SOURCE.records)
    problems = problems[:700] if split == "train" else problems[700:]
    if not problems:
        raise ValueError(f"{path}: no problem of the {split} split, which begins with the 701st; expected 1,000 in all")
    return problems


def to_problem(record: dict) -> Problem:
    """Body and question as one text; the equation "( 76.0 - 25.0 )" as the rationale "76 - 25 = 51 #### 51"."""
    answer = number(re.sub(r"\.0$", "", str(record["Answer"])))
    equation = re.sub(r"\.0\b", "", record["Equation"]).strip()
    if equation.startswith("(") and 0 not in depths(equation)[:-1]:  # in the published file, always
        equation = equation[1:-1].strip()
    equation = equation.replace("( ", "(").replace(" )", ")")
    return Problem(f"{record['Body']} {record['Question']}", answer, f"{equation} = {answer} #### {answer}")
