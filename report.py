"""Tables and plots of runs, from the lines of metrics.jsonl (support/log.py) alone.

    python report.py runs/2026-01-31-120000     # the table and the curve of any run, ended or not
    python report.py runs                       # a line for each run in a folder

train.py prints the same at the end of a run.
"""

import argparse
import math
import os
import statistics
import sys
from pathlib import Path

from support.log import ACCURACIES, complain, read

OFF_POLICY = ("acceptance", "acceptance_p5", "sequence_acceptance", "ess")  # all between 0 and 1


def reinforced(rows: list[dict]) -> list[dict]:
    """The steps alone, without the evaluations."""
    return [row for row in rows if row["phase"] == "reinforce"]


def table(rows: list[dict]) -> str:
    """Accuracy before and after; the nested model's speed beside the full one's; how far off-policy it was."""
    steps, lines = reinforced(rows), [f"{'accuracy':28}{'before':>16}{'after':>16}"]
    names = [f"{split}, {mode}" for split in ("test", "new wordings", "valid") for mode in ("greedy", "sampled")]
    for name, key in zip(names, ACCURACIES, strict=True):
        known = [(row[key], row[f"{key}_se"]) for row in rows if row[key] is not None]
        if known:
            before, after = (f"{mean:.1%} ± {error:.1%}" for mean, error in (known[0], known[-1]))
            points = f"{100 * (known[-1][0] - known[0][0]):+10.1f} points"
            lines.append(f"{name:28}{before:>16}" + (f"{after:>16}{points}" if known[1:] else f"{'–':>16}"))
    if not steps:
        return "\n".join(lines)

    pairs = [row for row in steps if row["full_tokens_per_second"]]
    if pairs:
        lines += ["", f"{f'sampling, {len(pairs)} batches':28}{'nested':>16}{'full':>16}"]
        for name, key, digits in (("tokens/s", "tokens_per_second", 0), ("tokens a completion", "mean_length", 1)):
            nested, full = (statistics.median(row[side + key] for row in pairs) for side in ("", "full_"))
            times = f"{nested / full:9.2f} times" if key == "tokens_per_second" else ""
            lines.append(f"{name:28}{nested:16,.{digits}f}{full:16,.{digits}f}{times}")

    n = max(1, len(steps) // 10)
    parts = {f"the first {n}": steps[:n], f"the last {n}": steps[-n:], f"all {len(steps)}": steps}
    lines += ["", f"{'batches, the mean of':28}" + "".join(f"{name:>16}" for name in parts)]
    for key in ("reward", *OFF_POLICY, "silent_groups", "cut_off"):
        known = ([row[key] for row in part if row[key] is not None] for part in parts.values())
        lines.append(
            f"{key.replace('_', ' '):28}" + "".join(f"{statistics.fmean(k or [math.nan]):16.3f}" for k in known)
        )
    return "\n".join(lines)


def means(rows: list[dict], key: str, width: int = 60) -> list[tuple[float, float]]:
    """(step, figure) of the reinforced steps, with neighbours averaged into `width` points at most."""
    steps = [row for row in reinforced(rows) if row[key] is not None]
    size = max(1, math.ceil(len(steps) / width))
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    return [tuple(statistics.fmean(row[each] for row in group) for each in ("step", key)) for group in groups]


def points(rows: list[dict], width: int = 60) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, reward), in `width` points at most, and (step, sampled accuracy)."""
    both = ((row["step"], row["test_accuracy_sampled"], row["valid_accuracy_sampled"]) for row in rows)
    known = [(step, test if valid is None else valid) for step, test, valid in both]
    return means(rows, "reward", width), [(step, accuracy) for step, accuracy in known if accuracy is not None]


def curve(rows: list[dict], width: int = 60, height: int = 10) -> str:
    """The reward of the nested samples and the full model's accuracy, drawn with characters."""
    reward, test = points(rows, width)
    plotted = plot({"·": reward, "o": test}, rows[-1]["step"], width, height)
    return f"{plotted}\n· reward of the nested samples    o accuracy of the full model, sampled"


def plot(series: dict[str, list[tuple[float, float]]], last: int, width: int = 60, height: int = 10) -> str:
    """(step, value) of each mark, values from 0 up and steps from 0 to the last; later marks hide earlier ones."""
    top = max(y for each in series.values() for _, y in each) or 1.0
    grid = [[" "] * (width + 1) for _ in range(height + 1)]
    for mark, each in series.items():
        for x, y in each:
            grid[round(y / top * height)][round(x / (last or 1) * width)] = mark
    labels = {height: f"{top:.2f}", 0: "0.00"}
    lines = [f"{labels.get(level, ''):>5} |{''.join(grid[level])}".rstrip() for level in reversed(range(height + 1))]
    return "\n".join([*lines, f"{'':5} +{'-' * width}> step {last or 1}"])


def draw(rows: list[dict], path: Path) -> bool:
    """`curve` as a picture, and how far off-policy the batches were. False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    reward, test = points(rows)
    figure = Figure(figsize=(7, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot(*zip(*reward, strict=True), label="reward of the nested samples")
    above.plot(*zip(*test, strict=True), "o-", label="accuracy of the full model, sampled")
    for key in OFF_POLICY:
        below.plot(*zip(*means(rows, key), strict=True), label=key.replace("_", " "))
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend()
    below.set_xlabel("step")
    figure.savefig(path, dpi=150)
    return True


def runs_in(folder: Path) -> str:
    """A line for each run in a folder of runs."""
    lines = []
    for metrics in sorted(folder.glob("*/metrics.jsonl")):
        try:
            rows = read(metrics.parent)
            keys = ("test_accuracy_sampled", "valid_accuracy_sampled")
            known = [f"{row[key]:.1%}" for key in keys for row in rows if row[key] is not None]
            said = f"step {rows[-1]['step']}" + f", sampled {' to '.join([*known[:1], *known[1:][-1:]])}" * bool(known)
        except ValueError as error:
            said = str(error).removeprefix(f"{metrics}: ")
        lines.append(f"{metrics.parent}  {said}")
    return "\n".join(lines)


def print_report(folder: str | Path) -> None:
    """Prints the table and the curve of the run in `folder`, and leaves curve.png there where matplotlib is."""
    folder = Path(os.path.expanduser(folder))
    rows = read(folder)
    print(f"\n{table(rows)}\n")
    if len(rows) > 1:
        print(curve(rows))
        drawn = draw(rows, folder / "curve.png")
        print(f"curve: {Path(folder) / 'curve.png'}" if drawn else "(curve.png needs matplotlib, which is not here)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="folder of a run, which holds its metrics.jsonl; or of several runs")
    folder = Path(os.path.expanduser(parser.parse_args(arguments).run))
    try:
        if not (folder / "metrics.jsonl").exists() and (runs := runs_in(folder)):
            print(runs)
        else:
            print_report(folder)
    except (ValueError, OSError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
