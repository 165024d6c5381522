"""The picture of the method: seven steps, numbered as in README and in the comments of train.py.

python -m docs.picture      # writes docs/picture.svg
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

PATH = Path(__file__).with_name("picture.svg")
FULL, NESTED, PLAIN = "#0072B2", "#D55E00", "#f2f2f2"  # blue: all layers; orange: some are skipped
LAYERS, SKIPPED = 6, (2, 4)
INK = "#222222"


def write(axes, x: float, y: float, text: str, **more) -> None:
    axes.text(x, y, text, **{"va": "top", "fontsize": 8.8, "color": INK, "linespacing": 1.45} | more)


def box(axes, x: float, y: float, width: float, title: str, text: str, colour: str = PLAIN) -> None:
    shape = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": PLAIN, "ec": colour, "lw": 1.6}
    axes.add_patch(FancyBboxPatch((x, y), width, 1.75, **shape))
    write(axes, x + 0.14, y + 1.6, title, fontsize=9.8, weight="bold")
    write(axes, x + 0.14, y + 1.25, text)


def stack(axes, x: float, y: float, colour: str, skipped: tuple[int, ...] = ()) -> None:
    """The layers of a model, from the first at the bottom; a skipped one is an empty, dashed frame."""
    for layer in range(LAYERS):
        filled = {"fc": colour, "ec": colour}
        look = {"fc": "none", "ec": colour, "ls": (0, (2, 1.5))} if layer in skipped else filled
        axes.add_patch(Rectangle((x, y + 0.2 * layer), 0.5, 0.14, lw=1, **look))


def arrow(axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "lw": 1.3, "color": INK, "shrinkA": 1, "shrinkB": 1}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **style))


def draw(path: Path = PATH) -> None:
    figure = Figure(figsize=(11.6, 4.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11.6), ylim=(0, 4.5))
    axes.axis("off")

    box(axes, 0.15, 2.6, 1.9, "1  draw", "problems x\n\na skip mask z,\nnew for each batch")
    box(axes, 2.45, 2.6, 3.6, "2  sample", "", NESTED)
    stack(axes, 2.62, 2.72, FULL)
    stack(axes, 4.25, 2.72, NESTED, SKIPPED)
    write(axes, 3.22, 3.85, "the full\nmodel reads\nthe prompt")
    write(axes, 4.88, 3.85, "the nested\nmodel writes y;\nlog η(y) is kept")
    arrow(axes, (3.15, 2.9), (4.2, 2.9))
    box(axes, 6.45, 2.6, 2.25, "3  grade", "48 / 12 = 4 #### 44\n#### 9\n48 / 12 = 4 #### 4\n#### 2")
    write(axes, 8.0, 3.85, "R = 0\nR = 0\nR = 1\nR = 0")
    box(axes, 9.1, 2.6, 2.35, "4  advantage", "A = (R − mean) / std\nof its group:\n−0.58, −0.58, 1.73, −0.58")
    box(axes, 9.1, 0.2, 2.35, "5  ratio", "", FULL)
    stack(axes, 9.27, 0.32, FULL)
    write(axes, 9.9, 1.45, "the full model\nreads y: log π(y)\n\nρ = π / η")
    box(axes, 5.55, 0.2, 3.15, "6  weight", "w = min(Πρ, 2), for example:\n0.002 for ‘44’, which the full model\n"
        "would hardly write; 2 for the right\nanswer, which it likes better")  # fmt: skip
    box(
        axes,
        1.5,
        0.2,
        3.65,
        "7  update",
        "the gradient of\n−(1/Z) Σ w A log π(y)\nreaches every layer:\none optimiser step",
        FULL,
    )
    stack(axes, 4.45, 0.42, FULL)
    for x in (2.05, 6.05, 8.7):
        arrow(axes, (x, 3.5), (x + 0.4, 3.5))
    arrow(axes, (10.3, 2.6), (10.3, 1.95))
    arrow(axes, (9.1, 1.05), (8.7, 1.05))
    arrow(axes, (5.55, 1.05), (5.15, 1.05))
    arrow(axes, (1.5, 1.05), (0.85, 2.6), -0.35)
    write(axes, 0.45, 1.3, "the next\nbatch", ha="center")

    with matplotlib.rc_context({"svg.hashsalt": "picture"}):  # the same picture is the same file
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw()
    print(f"picture: {PATH}")
