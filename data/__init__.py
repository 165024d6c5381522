"""Data sets as lists of `Problem`: SVAMP, GSM8K, Math12k from their published files, arith from templates of ours, and
files of the user's own.
"""

from pathlib import Path

from data import arith, gsm8k, math12k, own, svamp
from data.problem import Problem

SPLITS = {name: ("train", "test") for name in ("svamp", "gsm8k", "math12k")} | {"arith": tuple(arith.SIZES)}
DATASETS = tuple(SPLITS)
VALID = 100  # problems of the split valid
EMBEDDED = Path(__file__).parent / "tiny"  # the embedded model, which docs/tiny.py makes


def is_file(name: str) -> bool:
    """Whether this names a file of the user's own, not a data set."""
    return name.endswith((".jsonl", ".json"))


def splits(name: str) -> tuple[str, ...]:
    """The disjoint splits of a data set, or of a file, which can be loaded as one too, as "all"."""
    if name not in DATASETS and not is_file(name):
        raise ValueError(f"dataset {name!r}: expected one of {', '.join(DATASETS)}, or a file *.jsonl")
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
    return {"svamp": svamp, "gsm8k": gsm8k, "math12k": math12k}[name].load(split, data_dir)
