"""What the runs of a study came to: accuracy at equal steps and at equal seconds, against the first arm.

    python -m docs.comparison docs/runs/svamp --first full --out docs/svamp.svg

The folder holds, as docs/study.py leaves them, ARM-SEED/ with metrics.jsonl, config.json and correct.json. An interval
is of the difference of an arm's accuracy to the first arm's, 95 %, by a bootstrap over the problems *and* over the
seeds: both are drawn anew, with both arms alike. Of two or three seeds it is too narrow rather than too wide.

The picture has the shape of the paper's: accuracy of the full model by skip ratio, a line a gradient, and beside it the
speed of sampling (not with --untimed).
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from docs import figures
from report import reinforced
from support.log import read, report_error
from support.settings import Settings, read_settings


@dataclass
class Seed:
    """One run: its settings, its steps, and by number of steps the accuracy of each problem."""

    settings: Settings
    steps: list[dict]
    accuracy: dict[int, np.ndarray]


def seconds(steps: list[dict]) -> float:
    """Of a step: the median of sampling, scoring and updating, and its share of measuring nested models."""
    parts = ("seconds_sample", "seconds_grade", "seconds_update")
    measuring = sum(row["seconds_measure"] or 0.0 for row in steps) / len(steps)
    return statistics.median(sum(row[part] for part in parts) for row in steps) + measuring


def read_run(folder: Path) -> Seed:
    """ValueError or OSError that names the file at fault."""
    path = folder / "correct.json"
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
        accuracy = {int(n): np.array([each.count("1") / len(each) for each in some]) for n, some in texts.items()}
        if not accuracy or len({len(each) for each in accuracy.values()}) != 1:
            raise ValueError("expected the same problems after each number of steps")
    except (ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: not what docs/study.py writes ({error})") from None
    return Seed(read_settings(folder), reinforced(read(folder)), accuracy)


def read_study(folder: Path) -> dict[str, dict[int, Seed]]:
    """The runs by arm and seed. ValueError where they are not of the same problems, or there are none."""
    arms: dict[str, dict[int, Seed]] = defaultdict(dict)
    for run in sorted(folder.glob("*/correct.json")):
        if match := re.fullmatch(r"(.+)-(\d+)", run.parent.name):
            arms[match[1]][int(match[2])] = read_run(run.parent)
    if not arms:
        raise FileNotFoundError(f"{folder}: no run of a study in it (ARM-SEED/correct.json)")
    if len({len(each) for arm in arms.values() for seed in arm.values() for each in seed.accuracy.values()}) > 1:
        raise ValueError(f"{folder}: the runs were evaluated on different problems")
    return dict(arms)


def interval(differences: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences (seeds, problems), both drawn anew."""
    generator, (seeds, problems) = np.random.default_rng(0), differences.shape
    means = []
    for _ in range(resamples):
        some = differences[generator.integers(seeds, size=seeds)].mean(axis=0)
        means.append(some[generator.integers(problems, size=problems)].mean())
    return tuple(np.quantile(means, (0.025, 0.975)))


def points(differences: np.ndarray) -> str:
    """The mean of paired differences (seeds, problems) in points, with its interval."""
    low, high = interval(differences)
    return f"{100 * differences.mean():+.1f} ({100 * low:+.1f} … {100 * high:+.1f})"


def against(arm: dict[int, Seed], first: dict[int, Seed], at) -> str:
    """An arm after as many steps as `at` says of each run, against the first, over the seeds that both have."""
    both = sorted(arm.keys() & first.keys())
    if not both:
        return "–"
    return points(np.stack([arm[s].accuracy[at(arm[s])] - first[s].accuracy[shortest(first[s])] for s in both]))


def shortest(seed: Seed) -> int:
    return min(seed.accuracy)


def longest(seed: Seed) -> int:
    return max(seed.accuracy)


def table(arms: dict[str, dict[int, Seed]], first: str) -> str:
    """A line an arm: what a step takes, what it learned in as many steps and in as many seconds, how far off it was."""
    columns = (
        "s a step",
        "accuracy",
        f"against {first}",
        "in equal seconds",
        f"against {first}",
        "reward",
        "sequence acceptance",
        "ESS",
        "signal",
    )
    lines = [f"| arm | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, arm in arms.items():
        same = name == first

        def accuracy(at, arm=arm) -> str:
            each = [100 * seed.accuracy[at(seed)].mean() for seed in arm.values()]
            return f"{statistics.fmean(each):.1f} % ({', '.join(f'{x:.1f}' for x in each)})"

        more = statistics.fmean(longest(seed) / shortest(seed) for seed in arm.values())
        cells = [f"{statistics.fmean(seconds(seed.steps) for seed in arm.values()):.1f}", accuracy(shortest)]
        cells += ["" if same else against(arm, arms[first], shortest)]
        cells += ["" if more == 1 else f"{accuracy(longest)}, {more:.2f} × the steps"]
        cells += ["" if same or more == 1 else against(arm, arms[first], longest)]
        steps = [row for seed in arm.values() for row in seed.steps[: shortest(seed)]]
        cells += [
            f"{statistics.fmean(row[key] for row in steps):.3f}" for key in ("reward", "sequence_acceptance", "ess")
        ]
        cells += [f"{statistics.fmean(1 - row['zero_variance_groups'] for row in steps):.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(arms: dict[str, dict[int, Seed]], first: str, path: Path, title: str) -> None:
    """Accuracy by skip ratio and gradient at equal steps: means over the seeds, bars the 95 % interval of the
    difference to the first arm."""
    figure, [axes] = figures.panels(1, width=6.4)
    base = arms[first]
    level = statistics.fmean(100 * seed.accuracy[shortest(seed)].mean() for seed in base.values())
    lines = defaultdict(list)
    for name, arm in arms.items():
        some, others = (next(iter(each.values())).settings for each in (arm, base))
        alike = (some.prompts, some.samples) == (others.prompts, others.samples)
        both = sorted(arm.keys() & base.keys())
        if name == first or not both or not some.skip_ratio or not alike:
            continue
        d = np.stack([arm[s].accuracy[shortest(arm[s])] - base[s].accuracy[shortest(base[s])] for s in both])
        low, high = interval(d)
        bars = 100 * (d.mean() - low), 100 * (high - d.mean())
        lines[some.gradient].append((some.skip_ratio, level + 100 * d.mean(), *bars))
    right = max((x for points in lines.values() for x, *_ in points), default=0)
    axes.plot([0], [level], **figures.look("full"))
    ends = []
    for n, (gradient, points) in enumerate(lines.items()):
        x, y, low, high = np.array(sorted(points)).T
        x += 0.004 * (n - 1)  # bars beside each other
        axes.plot([0, *x], [level, *y], **figures.look(gradient))
        axes.errorbar(x, y, (low, high), fmt="none", capsize=3, ecolor=figures.look(gradient)["color"])
        ends.append((x[-1], y[-1], *figures.ESTIMATORS[gradient][:2]))
    axes.set(xlabel="share of the layers skipped", ylabel="accuracy of the full model, %", title=title)
    axes.set_xlim(-0.01, right * 1.35 or 1)
    axes.annotate("nothing skipped", (0, level), (6, 6), textcoords="offset points", fontsize=8.5)
    figures.label_ends(axes, ends)
    figures.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a study's runs")
    parser.add_argument("--first", default="full", help="the arm that the others are held against (default: full)")
    parser.add_argument("--arms", nargs="+", help="which, in which order (default: all)")
    parser.add_argument("--out", type=Path, help="the picture to draw, such as study.svg (default: none)")
    parser.add_argument("--title", default="", help="of the picture: what it shows")
    a = parser.parse_args(arguments)
    try:
        arms = read_study(a.folder)
        names = [a.first, *(name for name in a.arms or arms if name != a.first)]
        if missing := [name for name in names if name not in arms]:
            raise ValueError(f"{a.folder} has no arm {missing[0]!r}; it has {', '.join(arms)}")
        arms = {name: arms[name] for name in names}
        print(table(arms, a.first))
        if a.out:
            draw(arms, a.first, a.out, a.title)
    except ImportError:
        print(f"({a.out.name} needs matplotlib, which is not here)")
    except (ValueError, OSError) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
