"""One style for all figures of docs/: an estimator has one colour, one marker and one dash everywhere.

The colours are Okabe and Ito's, which colour-blind people can tell apart; markers and dashes differ in a grey print.
Only the drawing needs matplotlib: ImportError without it.
"""

from pathlib import Path

ESTIMATORS = {  # by the name that --gradient takes: its label, colour, marker, dash
    "full": ("nothing skipped", "#000000", "o", "-"),
    "on-policy": ("no correction", "#D55E00", "X", "--"),
    "is": ("by token", "#E69F00", "D", "-"),
    "is-sequence": ("by sequence", "#0072B2", "s", "-"),
    "is-prefix": ("by prefix", "#009E73", "^", "-"),
    "is-geometric": ("geometric", "#999999", "v", "-."),
    "retrace": ("Retrace", "#CC79A7", "P", "-"),
    "retrace-token": ("Retrace by token", "#56B4E9", "p", ":"),
}


def look(kind: str) -> dict:
    _, colour, marker, dash = ESTIMATORS[kind]
    return {"color": colour, "marker": marker, "linestyle": dash, "markersize": 5, "linewidth": 1.5}


def panels(n: int, width: float = 4.6, height: float = 3.5, **options):
    """A figure and the axes of its n panels, side by side, without frames on top and on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n, height), layout="constrained")
    axes = list(figure.subplots(1, n, squeeze=False, **options)[0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", alpha=0.25)
    return figure, axes


def label_ends(axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes a label at the end (x, y) of each line, in its colour; they are moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, at = (high - low) / 17, -float("inf")
    for x, y, label, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, at + gap)
        where = {"xytext": (12, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(label, (x, at), fontsize=8.5, color=colour, **where)


def save(figure, path: Path) -> None:
    """The same figure is the same file."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
