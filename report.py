"""What a run tells: a line a step, metrics.jsonl, and at its end a table and a curve.

    python report.py runs/2026-01-31-120000     # the table and the curve of any run, ended or not

All of it is computed from the lines of metrics.jsonl, whose keys METRICS lists; docs/method.md says what each is.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

ACCURACIES = tuple(f"{split}_accuracy{mode}" for split in ("test", "wordings") for mode in ("", "_sampled"))
# The keys of a line of metrics.jsonl; null where a figure is not defined.
METRICS = (
    *("phase", "step", "reward", "loss", "grad_norm", "lr", "stepped"),
    *(key for accuracy in ACCURACIES for key in (accuracy, f"{accuracy}_se")),
    *("skipped_layers", "acceptance", "k1", "k3", "ratio_min", "ratio_max", "max_abs_log_ratio", "ess", "entropy"),
    *("silent_groups", "cut_off", "mean_length", "tokens", "tokens_per_second"),
    *("full_reward", "full_mean_length", "full_tokens_per_second"),
    *("seconds_sample", "seconds_score", "seconds_update", "seconds_evaluate"),
)


class Log:
    """What a run leaves behind: metrics.jsonl, samples.jsonl, a line a step on the terminal; each phase's time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.phase_now = ""  # for what is said when memory runs out
        self.saved = "none"  # the checkpoint, for the last line
        self.seconds = {}
        self.samples = []  # of the step that is not yet written
        self.sizes = {"samples.jsonl": 0, "metrics.jsonl": 0}  # bytes, as of the last whole step

    @contextmanager
    def phase(self, name: str):
        self.phase_now, start = name, time.perf_counter()
        yield
        self.phase_now = ""
        self.seconds[f"seconds_{name}"] = self.seconds.get(f"seconds_{name}", 0.0) + time.perf_counter() - start

    def write(self, line: str, **figures) -> None:
        figures |= self.seconds
        unknown = figures.keys() - set(METRICS)
        assert not unknown, f"not among METRICS: {unknown}"
        row = {key: figures.get(key) for key in METRICS}
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for name, rows in (("samples.jsonl", self.samples), ("metrics.jsonl", [row])):
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
        self.sizes = {name: (self.folder / name).stat().st_size for name in self.sizes}
        self.seconds, self.samples = {}, []
        tqdm.write(line)

    def rewind(self, sizes: dict[str, int]) -> None:
        """Cuts off what was written after a checkpoint. ValueError where a file is shorter than it was then."""
        for name, size in sizes.items():
            path = self.folder / name
            path.touch()
            if path.stat().st_size < size:
                raise ValueError(f"{path}: shorter than when the checkpoint was written, lines were taken out")
        for name, size in sizes.items():
            os.truncate(self.folder / name, size)
        self.sizes = sizes


def examples(step: int, mode: str, records: list[list[dict]]) -> list[dict]:
    """The first sample of up to four problems, to see what the model does."""
    return [{"step": step, "mode": mode, **samples[0]} for samples in records[:4]]


def readable(phase: str, step: int, steps: int, f: dict, seconds: float | None) -> str:
    """A step's figures as the line for the terminal."""
    if phase == "warmup":
        nested = (
            f"  acceptance {f['acceptance']:.3f} without {len(f['skipped_layers'])} layers" if "acceptance" in f else ""
        )
        return f"warm-up {step}/{steps}  loss {f['loss']:.3f}{nested}  {seconds:.1f} s"
    parts = [f"step {step}/{steps}"]
    if step:
        update = f"loss {f['loss']:+.4f}" if f["stepped"] else "no group has a signal: no step"
        parts.append(
            f"reward {f['reward']:.3f}  {update}  silent groups {f['silent_groups']:.0%}  "
            f"acceptance {f['acceptance']:.3f}  ess {f['ess']:.3f}  length {f['mean_length']:.0f}  "
            f"cut off {f['cut_off']:.0%}  {f['tokens_per_second']:.0f} tokens/s"
        )
    if "test_accuracy" in f:
        parts.append(readable_accuracy(f))
    return "  ".join(parts)


def readable_layers(measured, n_skipped: int) -> str:
    """A `skip.Measured` as a table: its valid layers for n_skipped, in the order in which they can be left out."""
    n = len(measured.valid_layers(n_skipped))
    rows = {
        "layer": [str(layer) for layer in measured.order[:n]],
        "accepted without it": [f"{measured.alone[layer]:.2f}" for layer in measured.order[:n]],
        "and those before": [f"{together:.2f}" for together in measured.together[:n]],
    }
    lines = [f"{name:20}" + "".join(f"{cell:>5}" for cell in cells) for name, cells in rows.items()]
    others = ", ".join(f"{layer} ({measured.alone[layer]:.2f})" for layer in sorted(measured.order[n:]))
    masks = f"{n_skipped} of these are skipped: {math.comb(n, n_skipped):,} masks"
    return "\n".join(["", *lines, masks + (f"; never {others}" if others else ""), ""])


def readable_accuracy(f: dict) -> str:
    sampled = "test_accuracy_sampled"
    return f"test: sampled {f[sampled]:.1%} ± {f[sampled + '_se']:.1%}, greedy {f['test_accuracy']:.1%}"


def read(folder: str | Path) -> list[dict]:
    """The reinforced steps of a run, step 0 first: that is the evaluation before them.

    Raises FileNotFoundError where no run is, ValueError where its metrics are broken or hold no such step.
    """
    path = Path(os.path.expanduser(folder)) / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["phase"] == "reinforce"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the metrics of a run ({error!r})") from None
    if not rows:
        raise ValueError(f"{path}: no reinforced step yet")
    return rows


def table(rows: list[dict]) -> str:
    """Accuracy before and after; the nested model's speed beside the full one's; how far off-policy it was."""
    steps, lines = rows[1:], [f"{'accuracy':28}{'before':>16}{'after':>16}"]
    names = ("test, greedy", "test, sampled", "new wordings, greedy", "new wordings, sampled")
    for name, key in zip(names, ACCURACIES, strict=True):
        known = [(row[key], row[f"{key}_se"]) for row in rows if row[key] is not None]
        if known:
            before, after = (f"{mean:.1%} ± {error:.1%}" for mean, error in (known[0], known[-1]))
            lines.append(f"{name:28}{before:>16}{after:>16}{100 * (known[-1][0] - known[0][0]):+10.1f} points")
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
    for key in ("reward", "acceptance", "ess", "silent_groups", "cut_off"):
        known = ([row[key] for row in part if row[key] is not None] for part in parts.values())
        lines.append(
            f"{key.replace('_', ' '):28}" + "".join(f"{statistics.fmean(k or [math.nan]):16.3f}" for k in known)
        )
    return "\n".join(lines)


def points(rows: list[dict], width: int = 60) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(step, reward) with neighbouring steps averaged into `width` points at most, and (step, sampled accuracy)."""
    steps = rows[1:]
    size = math.ceil(len(steps) / width)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)] if steps else []
    reward = [tuple(statistics.fmean(row[key] for row in group) for key in ("step", "reward")) for group in groups]
    key = "test_accuracy_sampled"
    return reward, [(row["step"], row[key]) for row in rows if row[key] is not None]


def curve(rows: list[dict], width: int = 60, height: int = 10) -> str:
    """The reward of the nested samples and the full model's accuracy, drawn with characters."""
    reward, test = points(rows, width)
    top = max(y for _, y in reward + test) or 1.0
    last = rows[-1]["step"] or 1
    grid = [[" "] * (width + 1) for _ in range(height + 1)]
    for mark, series in (("·", reward), ("o", test)):
        for x, y in series:
            grid[round(y / top * height)][round(x / last * width)] = mark
    labels = {height: f"{top:.2f}", 0: "0.00"}
    lines = [f"{labels.get(level, ''):>5} |{''.join(grid[level])}".rstrip() for level in reversed(range(height + 1))]
    lines.append(f"{'':5} +{'-' * width}> step {last}")
    return "\n".join([*lines, "· reward of the nested samples    o accuracy on the test split, full model, sampled"])


def draw(rows: list[dict], path: Path) -> bool:
    """`curve` as a picture. False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    reward, test = points(rows)
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(*zip(*reward, strict=True), label="reward of the nested samples")
    axes.plot(*zip(*test, strict=True), "o-", label="accuracy on the test split, full model, sampled")
    axes.set(xlabel="step", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150)
    return True


def print_report(folder: str | Path) -> None:
    """Prints the table and the curve of the run in `folder`, and leaves curve.png there where matplotlib is."""
    rows = read(folder)
    print(f"\n{table(rows)}\n")
    if len(rows) > 1:
        print(curve(rows))
        drawn = draw(rows, Path(folder) / "curve.png")
        print(f"curve: {Path(folder) / 'curve.png'}" if drawn else "(curve.png needs matplotlib, which is not here)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="folder of a run, which holds its metrics.jsonl")
    try:
        print_report(parser.parse_args(arguments).run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
