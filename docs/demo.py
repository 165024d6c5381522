"""Why the correction is there: full sampling and nested sampling, uncorrected and with each family of corrections.

    python -m docs.demo --out FOLDER                      # about five minutes on two cores; no network
    python -m docs.demo --out FOLDER --seeds 0 1 2        # the figure in docs/, three times as long

Seven runs of train.py from the embedded model, which differ in sampling and correction alone: the same problems, random
streams and masks. Two run at a time, a thread each. Batches are small, and each serves four updates (--updates), which
is off-policy even where the full model samples; nested samples are further off, with five of twelve layers skipped. It
ends in a table and a plot, and leaves demo.svg and the runs in FOLDER.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import data
import report
from docs import figures
from support.log import read, report_error

ROOT = Path(__file__).resolve().parents[1]
STEPS, PROBLEMS = 30, 200
FLAGS = f"--steps {STEPS} --prompts 4 --updates 4 --lr 3e-4 --eval-every 6 --save-every 1000 --device cpu"
NESTED = "--skip-ratio 0.4"
ARMS = {  # mark in the plot: name, what it adds to FLAGS
    "u": ("full, no correction", "--skip-ratio 0 --gradient on-policy"),
    "f": ("full, by sequence", "--skip-ratio 0 --gradient is-sequence"),
    "x": ("nested, no correction", f"{NESTED} --gradient on-policy"),
    "t": ("nested, by token", f"{NESTED} --gradient is"),
    "p": ("nested, by prefix", f"{NESTED} --gradient is-prefix"),
    "s": ("nested, by sequence", f"{NESTED} --gradient is-sequence"),
    "r": ("nested, Retrace", f"{NESTED} --gradient retrace"),
}


def run(mark: str, folder: Path, seed: int) -> list[dict]:
    """The metrics of an arm. ValueError with its last words if it fails."""
    name, flags = ARMS[mark]
    given = [*FLAGS.split(), *flags.split(), "--test-file", str(folder / "test.jsonl"), "--seed", str(seed)]
    out, start = folder / f"{mark}-{seed}", time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "train.py", *given, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise ValueError(f"{name}: {ended.stderr.strip()}")
    print(f"{name:28}{time.perf_counter() - start:4.0f} s", flush=True)
    return read(out)


def table(arms: dict[str, list[dict]]) -> str:
    """The full model's accuracy before and after; of the batches the mean reward, sequence acceptance and ESS."""
    lines = [f"{'':30}" + "".join(f"{name:>10}" for name in ("before", "after", "reward", "sequence", "ESS"))]
    for mark, rows in arms.items():
        steps, accuracy = report.reinforced(rows), [y for _, y in report.points(rows)[1]]
        means = [statistics.fmean(row[key] for row in steps) for key in ("reward", "sequence_acceptance", "ess")]
        cells = [f"{accuracy[0]:.1%}", f"{accuracy[-1]:.1%}", *(f"{mean:.2f}" for mean in means)]
        lines.append(f"{f'{mark} {ARMS[mark][0]}':30}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def draw(seeds: list[dict[str, list[dict]]], path: Path) -> None:
    """Full sampling on the left, nested on the right: means over the seeds, shaded from the lowest to the highest."""
    figure, panels = figures.panels(2, width=5.0, sharey=True)
    titles = "The full model samples", "A nested model samples, 5 of 12 layers skipped"
    for axes, title, is_nested in zip(panels, titles, (False, True), strict=True):
        ends = []
        for mark in (mark for mark, (_, flags) in ARMS.items() if (NESTED in flags) == is_nested):
            kind = ARMS[mark][1].split()[-1]
            steps, *_ = zip(*report.points(seeds[0][mark])[1], strict=True)
            each = [[100 * y for _, y in report.points(arms[mark])[1]] for arms in seeds]
            mean, low, high = ([f(column) for column in zip(*each, strict=True)] for f in (statistics.fmean, min, max))
            axes.plot(steps, mean, **figures.look(kind))
            axes.fill_between(steps, low, high, color=figures.look(kind)["color"], alpha=0.13, linewidth=0)
            ends.append((steps[-1], mean[-1], *figures.ESTIMATORS[kind][:2]))
        axes.set(title=title, xlabel="step (four updates each)", ylim=(0, None), xlim=(-1, STEPS * 1.35))
        axes.set_xticks(range(0, STEPS + 1, 10))
        figures.label_ends(axes, ends)
    panels[0].set_ylabel("accuracy of the full model, sampled, %")
    figure.suptitle("A batch that serves four updates needs a correction, nested or not", fontsize=11)
    figures.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="folder for demo.svg and the runs (default: a new one)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each of all arms (default: 0)")
    a = parser.parse_args(arguments)
    try:
        folder = (a.out or Path(tempfile.mkdtemp(prefix="demo-"))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        asked = [{"question": p.question, "answer": p.answer} for p in data.load("arith", "test")[:PROBLEMS]]
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")  # no other split then
        print(f"{len(ARMS) * len(a.seeds)} runs in {folder}, two at a time: train.py {FLAGS}", flush=True)
        with ThreadPoolExecutor(2) as pool:
            runs = [{mark: pool.submit(run, mark, folder, seed) for mark in ARMS} for seed in a.seeds]
            try:
                seeds = [{mark: ended.result() for mark, ended in each.items()} for each in runs]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # Ctrl-C, or an arm that failed: begin no other
                raise
        for seed, arms in zip(a.seeds, seeds, strict=True):
            accuracies = {mark: report.points(rows)[1] for mark, rows in arms.items()}
            print(f"\nseed {seed}\n\n{table(arms)}\n\n{report.plot(accuracies, STEPS)}")
        print("accuracy of the full model, sampled")
        if importlib.util.find_spec("matplotlib") is None:
            print("demo.svg needs matplotlib, which is not here", file=sys.stderr)
            return 0
        draw(seeds, folder / "demo.svg")
        print(f"picture: {folder / 'demo.svg'}")
    except (OSError, ValueError, KeyboardInterrupt) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
