"""What reinforced runs came to, side by side: a table with paired bootstrap intervals, and curves.

    python -m docs.comparison --out FOLDER "full=runs/full-0,runs/full-1" "nested 0.2, IS=runs/is-0,runs/is-1"

Each arm is a name and its runs, one a seed, all from one checkpoint; the others are compared with the first arm. The
folder of a run holds train.py's metrics.jsonl, and in generated.jsonl what evaluate.py --samples 8 wrote of its
checkpoint.

The interval is of the difference of an arm's accuracy to the first arm's: the mean over its seeds for each problem,
resampled over the problems, both arms alike. It does not know how other seeds would have come out.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from report import reinforced
from support.log import complain, read


def by_problem(folder: Path) -> dict[str, float]:
    """The share of each problem's samples that is correct. ValueError or FileNotFoundError that names the file."""
    path, samples = folder / "generated.jsonl", {}
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; write it: evaluate.py --model {folder}/checkpoint --dataset NAME --samples 8 "
            f"--out {path}"
        )
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            samples.setdefault(record["question"], []).append(bool(record["correct"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what evaluate.py writes ({error!r})") from None
    return {question: statistics.mean(correct) for question, correct in samples.items()}


def interval(difference: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences, one a problem."""
    generator = np.random.default_rng(0)
    means = difference[generator.integers(len(difference), size=(resamples, len(difference)))].mean(axis=1)
    return tuple(np.quantile(means, (0.025, 0.975)))


def draw(arms: dict[str, list[list[dict]]], path: Path) -> None:
    """Sampled accuracy against steps, seconds of sampling and learning, and tokens sampled; means of an arm."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "comparison"  # the same figure is the same file
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    for name, runs in arms.items():
        spent = {"steps": lambda row: 1, "seconds": cost, "sampled tokens": lambda row: row["tokens"] or 0}
        for axis, (label, of) in zip(axes, spent.items(), strict=True):
            points = []
            for rows in runs:
                total = np.cumsum([of(row) if row["phase"] == "reinforce" else 0 for row in rows])
                key = max(("test_accuracy_sampled", "valid_accuracy_sampled"), key=lambda k: rows[0][k] is not None)
                points.append([(total[i], 100 * row[key]) for i, row in enumerate(rows) if row[key] is not None])
            x, y = np.mean(points, axis=0).T
            axis.plot(x, y, marker="o", label=name)
            axis.set_xlabel(label)
    axes[0].set_ylabel("accuracy of the full model, sampled, %")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def cost(row: dict) -> float:
    return sum(row[f"seconds_{part}"] or 0.0 for part in ("sample", "score", "update"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for comparison.svg")
    parser.add_argument("arms", nargs="+", metavar="NAME=RUN,RUN")
    a = parser.parse_args(arguments)
    folders = {name: [Path(f) for f in runs.split(",")] for name, _, runs in (arm.partition("=") for arm in a.arms)}
    try:
        arms = {name: [read(folder) for folder in runs] for name, runs in folders.items()}
        shares = {name: [by_problem(folder) for folder in runs] for name, runs in folders.items()}
        asked = {frozenset(seed) for seeds in shares.values() for seed in seeds}
        if len(asked) > 1 or asked == {frozenset()}:
            raise ValueError("the runs' generated.jsonl are not of the same problems; evaluate all on one split")
        Path(a.out).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return complain(error)
    print("| arm | accuracy, 8 samples | against the first | seconds | tokens | reward | acceptance | ESS | signal |")
    print("|---|---|---|---|---|---|---|---|---|")
    reference = None
    for name, runs in arms.items():
        seeds = shares[name]
        questions = sorted(seeds[0])
        accuracy = np.array([statistics.mean(seed[question] for seed in seeds) for question in questions])
        reference = accuracy if reference is None else reference
        difference = accuracy - reference
        low, high = interval(difference)
        each = " / ".join(f"{100 * statistics.mean(seed.values()):.1f}" for seed in seeds)
        against = f"{100 * difference.mean():+.1f} ({100 * low:+.1f} … {100 * high:+.1f})" if difference.any() else "–"
        steps = [row for rows in runs for row in reinforced(rows)]
        seconds, tokens = (sum(map(of, steps)) / len(runs) for of in (cost, lambda row: row["tokens"]))
        means = [statistics.mean(row[key] for row in steps) for key in ("reward", "acceptance", "ess")]
        signal = statistics.mean(1 - row["silent_groups"] for row in steps)
        print(
            f"| {name} | {100 * accuracy.mean():.1f} % ({each}) | {against} | {seconds:,.0f} | {tokens:,.0f} | "
            + " | ".join(f"{mean:.3f}" for mean in means)
            + f" | {signal:.0%} |"
        )
    if importlib.util.find_spec("matplotlib") is None:
        print("comparison.svg needs matplotlib, which is not here", file=sys.stderr)
        return 0
    draw(arms, Path(a.out) / "comparison.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
