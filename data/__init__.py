"""Data sets as lists of `Problem`: SVAMP, GSM8K, Math12k from their published files, arith from templates of ours."""

from pathlib import Path

from data import arith, gsm8k, math12k, svamp
from data.problem import Problem

SPLITS = {name: ("train", "test") for name in ("svamp", "gsm8k", "math12k")} | {"arith": tuple(arith.SIZES)}
DATASETS = tuple(SPLITS)


def load(name: str, split: str, data_dir: str | Path | None = None) -> list[Problem]:
    """The problems of a split, in the published order. SPLITS names the splits of each data set.

    data_dir: a folder with the published files, used as they are; None: the cache, filled by a download. Not for arith.
    Raises ValueError for an unknown name or split and for a broken file (with its line), FileNotFoundError for a file
    that data_dir lacks, ConnectionError for a download that fails.
    """
    if name not in DATASETS:
        raise ValueError(f"data set {name!r}: expected one of {', '.join(DATASETS)}")
    if split not in SPLITS[name]:
        raise ValueError(f"data set {name!r}, split {split!r}: expected one of {', '.join(SPLITS[name])}")
    if name == "arith":
        return arith.load(split)
    return {"svamp": svamp, "gsm8k": gsm8k, "math12k": math12k}[name].load(split, data_dir)
