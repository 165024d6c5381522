"""The pictures of runs, and the series of figures that they show. Only the drawing needs matplotlib.

`draw` shows one run in panels over its steps; `overlay` shows arms, each the runs of one or more seeds, against the
steps, the seconds and the tokens that they took. report.py says where the lines come from.
"""

import math
import statistics
import textwrap
from itertools import accumulate
from pathlib import Path

from support.log import ACCURACIES

NAMES = [f"{split}, {mode}" for split in ("test", "new wordings", "valid") for mode in ("greedy", "sampled")]
ACCURACY_NAMES = dict(zip(ACCURACIES, NAMES, strict=True))
PARTS = ("sample", "grade", "update", "measure")  # of a step's time; an evaluation only watches the run
SPENT = {"step": "step", "seconds": "seconds to sample, grade, update and measure", "sampled": "tokens sampled"}
# Okabe and Ito's colours, which colour-blind people can tell apart; dashes and markers differ in a grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES, MARKERS = ("-", "--", "-.", ":"), "os^Dv"
WIDTH = 30  # points of a line in an overlay, at most


def totals(rows: list[dict]) -> list[dict]:
    """The rows, each with the seconds and the sampled tokens of the run up to it."""
    seconds = accumulate(sum(row[f"seconds_{part}"] or 0.0 for part in PARTS) for row in rows)
    tokens = accumulate(row["tokens"] or 0 for row in rows)
    return [row | {"seconds": s, "sampled": n} for row, s, n in zip(rows, seconds, tokens, strict=True)]


def means(rows: list[dict], key: str, width: int = 60, x: str = "step") -> list[tuple[float, float]]:
    """(x, figure) where the figure is known, with neighbours averaged into `width` points at most."""
    known = [row for row in rows if row[key] is not None]
    size = max(1, math.ceil(len(known) / width))
    groups = [known[start : start + size] for start in range(0, len(known), size)]
    return [tuple(statistics.fmean(row[each] for row in group) for each in (x, key)) for group in groups]


def errors(rows: list[dict], key: str, width: int = 60) -> list[float] | None:
    """The standard errors of the points that `means` makes of an accuracy."""
    return [error for _, error in means(rows, f"{key}_se", width)] if key in ACCURACIES else None


def style(n: int) -> dict:
    """The looks of line n: no two of the first 28 are alike."""
    return {
        "color": COLOURS[n % len(COLOURS)],
        "linestyle": DASHES[n % len(DASHES)],
        "marker": MARKERS[n % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.3,
        "capsize": 2,
    }


def grid(rows: int, columns: int, size: tuple[float, float], **options):
    """An empty figure and its axes, a list for each row. ImportError without matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col", squeeze=False, **options)
    for column, each in enumerate(axes[-1]):  # the first is of steps
        each.xaxis.set_major_locator(MaxNLocator(7, integer=column == 0, steps=[1, 2, 5, 10]))
    for each in axes.flat:
        each.grid(alpha=0.3)
    return figure, axes


def draw(rows: list[dict], title: str, path: Path) -> None:
    """One run over its steps. A figure that was never measured has no line. ImportError without matplotlib."""
    sampler = "nested" if any(row["skipped_layers"] for row in rows) else "full"
    panels = {
        "reward, accuracy": {"reward": f"reward, {sampler} model", "full_reward": "reward, full model"}
        | {key: name.replace(",", " accuracy,") for key, name in ACCURACY_NAMES.items()},
        "off-policy": {
            "acceptance": "acceptance",
            "acceptance_p5": "its 5th percentile",
            "sequence_acceptance": "sequence acceptance",
            "ess": "effective sample size",
        },
        "tokens/s": {"tokens_per_second": f"{sampler} model", "full_tokens_per_second": "full model"},
        "loss": {"loss": "loss"},
        "gradient norm": {"grad_norm": "gradient norm"},
    }
    heading = textwrap.wrap(title, 110, break_on_hyphens=False, max_lines=8, placeholder=" …")
    size = (9, 11.5 + 0.15 * len(heading))
    figure, axes = grid(len(panels), 1, size, gridspec_kw={"height_ratios": (3, 3, 2, 1.5, 1.5)})
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=True):
        for n, (key, label) in enumerate(lines.items()):
            if known := means(rows, key):
                axis.errorbar(*zip(*known, strict=True), yerr=errors(rows, key), label=label, **style(n))
        axis.set_ylabel(name)
        if len(lines) > 1 and axis.has_data():
            columns = 4 if len(axis.get_legend_handles_labels()[1]) <= 4 else 3
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8)
        if name != "loss":
            lowest = min((y for key in lines for _, y in means(rows, key)), default=0.0)  # of a reward of one's own
            axis.set_ylim(0 if lowest >= 0 else None, 1.05 if name == "off-policy" else None)
    axes[-1][0].set_xlabel("step")
    figure.suptitle("\n".join(heading), family="monospace", fontsize=8, parse_math=False)
    save(figure, path)


def spread(runs: list[list[dict]], key: str, x: str) -> list[tuple[float, ...]]:
    """(x, mean, smallest, largest) of a figure over the runs, each of which has the same lines."""
    points = zip(*(means(totals(rows), key, WIDTH, x) for rows in runs), strict=True)
    pairs = (zip(*each, strict=True) for each in points)
    return [(statistics.fmean(xs), statistics.fmean(ys), min(ys), max(ys)) for xs, ys in pairs]


def overlay(arms: dict[str, list[list[dict]]], path: Path) -> None:
    """Sampled accuracy and reward of each arm against what they cost. ImportError without matplotlib."""
    names = {f"{split}_accuracy_sampled": f"{split} accuracy, sampled" for split in ("test", "valid")}
    names = {key: name for key, name in names.items() if any(spread(runs, key, "step") for runs in arms.values())}
    names["reward"] = "reward of the batches"
    labels = ["\n".join(textwrap.wrap(label, 130, break_on_hyphens=False)) for label in arms]
    below = sum(label.count("\n") + 1 for label in labels)
    figure, axes = grid(len(names), len(SPENT), (12, 3.2 * len(names) + 0.19 * below), sharey="row")
    for row, (key, name) in zip(axes, names.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, x in zip(row, SPENT, strict=True):
            lines = [axis.errorbar([], [], **style(n)) for n in range(len(arms))]
            for n, runs in enumerate(arms.values()):
                if points := spread(runs, key, x):
                    xs, ys, low, high = zip(*points, strict=True)
                    axis.errorbar(xs, ys, yerr=errors(runs[0], key, WIDTH) if len(runs) == 1 else None, **style(n))
                    axis.fill_between(xs, low, high, color=style(n)["color"], alpha=0.15, linewidth=0)
    for axis, label in zip(axes[-1], SPENT.values(), strict=True):
        axis.set_xlabel(label)
    title = "several seeds: the mean, shaded from smallest to largest; one run: ± standard error over the problems"
    look = {"loc": "outside lower left", "alignment": "left", "frameon": False, "fontsize": 8, "title_fontsize": 8}
    for text in figure.legend(lines, labels, title=title, **look).get_texts():
        text.set_parse_math(False)  # a prompt template may hold a $
    save(figure, path)


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150, format=path.suffix[1:] or "png")
