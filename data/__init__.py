"""Data sets as lists of `Problem`: SVAMP, GSM8K, Math12k from their published files, arith from templates of ours, and
files of the user's own.

To add a data set, write a module with `load(split, data_dir)` (svamp.py is the shortest) and name it in PUBLISHED: all
commands know it then.
"""

import difflib
import warnings
from pathlib import Path

import numpy as np

from data import arith, gsm8k, math12k, own, svamp
from data.problem import Problem

PUBLISHED = {"svamp": svamp, "gsm8k": gsm8k, "math12k": math12k}
SPLITS = {name: ("train", "test") for name in PUBLISHED} | {"arith": tuple(arith.SIZES)}
DATASETS = tuple(SPLITS)
VALID = 100  # problems of the split valid
FEW = 50  # problems of a test split below which a warning is due
EMBEDDED = Path(__file__).parent / "tiny"  # the embedded model, which docs/tiny.py makes


def is_file(name: str) -> bool:
    """Whether this names a file of the user's own, not a data set."""
    return name not in DATASETS and bool(Path(name).suffix)


def splits(name: str) -> tuple[str, ...]:
    """The disjoint splits of a data set, or of a file, which can be loaded as one too, as "all"."""
    if name not in DATASETS and not is_file(name):
        near = difflib.get_close_matches(name.lower(), DATASETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"dataset {name!r}: expected one of {', '.join(DATASETS)}, or a file *.jsonl{hint}")
    return SPLITS.get(name, ("train", "test"))


def load(name: str, split: str, data_dir: str | Path | None = None) -> list[Problem]:
    """The problems of a split, in the published order.

    split: one of `splits`; "valid", the last VALID of train, to make choices with; of a file also "all".
    data_dir: a folder with the published files, used as they are; None: the cache, filled by a download. For neither
        arith nor a file.
    Raises ValueError for an unknown name or split and for a broken file (with its line), FileNotFoundError for a file
    that is not there, ConnectionError for a download that fails.
    """
    known = (*splits(name), "valid", *("all",) * is_file(name))
    if split not in known:
        raise ValueError(f"dataset {name!r}, split {split!r}: expected one of {', '.join(known)}")
    if split == "valid":
        train = load(name, "train", data_dir)
        if len(train) <= VALID:
            raise ValueError(f"dataset {name!r}, split 'valid': the last {VALID} of train, which has only {len(train)}")
        return train[-VALID:]
    if is_file(name):
        return own.load(name, split)
    if name == "arith":
        return arith.load(split)
    return PUBLISHED[name].load(split, data_dir)


def load_splits(
    dataset: str,
    data_dir: str | Path | None = None,
    test_file: str = "",
    eval_split: str = "test",
    warmup_epochs: int = 0,
) -> tuple[list[Problem], dict[str, list[Problem]]]:
    """The problems to train on, and those to test with by split: test and, of arith, wordings; or valid.

    test_file: tested with instead.  eval_split: test, or valid.  No problem that is tested with is trained on, however
        it is spaced, capitalised and typeset.
    warmup_epochs: if there are any, every problem to train on needs a rationale.
    Raises what `load` raises, and ValueError for flags that exclude each other.
    """
    if test_file and eval_split == "valid":
        raise ValueError(f"--test-file {test_file} with --eval-split valid; expected one of the two")
    if test_file and not is_file(test_file):
        raise ValueError(f"--test-file is {test_file!r}; expected a file *.jsonl or *.json")
    if test_file:
        tests = {"test": load(test_file, "all")}
        every = load(dataset, "all" if is_file(dataset) else "train", data_dir)
    else:
        asked = ("train", "valid") if eval_split == "valid" else splits(dataset)
        tests = {split: load(dataset, split, data_dir) for split in asked}
        every = tests.pop("train")
    tested = {problem.key for problems in tests.values() for problem in problems}
    train = [problem for problem in every if problem.key not in tested]
    if twice := len(every) - len(train) - len(tests.get("valid", ())):
        warnings.warn(f"problems of {dataset} that are tested with, and so not trained on: {twice:,}", stacklevel=1)
    if not train:
        raise ValueError(f"all problems of {dataset} are tested with, none is left to train on")
    unsolved = sum(not problem.rationale for problem in train)
    if warmup_epochs and unsolved:
        raise ValueError(
            f"--warmup-epochs is {warmup_epochs}, but {unsolved:,} problems of {dataset} have no solution to learn "
            "from; expected a 'solution' in each record, or no --warmup-epochs"
        )
    for split, problems in tests.items():
        if len(problems) < FEW:
            warnings.warn(
                f"problems to test with ({split}): {len(problems)}, which tell little, see the ± of an accuracy",
                stacklevel=1,
            )
    return train, tests


def draw_problems(problems: list[Problem], size: int, step: int, seed: int) -> list[Problem]:
    """The problems of one step, counted from 1. Each epoch has the data set in a new order, fixed by seed and epoch."""
    n, draws = len(problems), range((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {i // n for i in draws}}
    return [problems[orders[i // n][i % n]] for i in draws]
