"""Why the correction is there: full sampling and nested sampling, uncorrected and with each family of corrections.

    python -m docs.demo --out FOLDER      # about five minutes on two cores; no network

Every arm is a run of train.py from the embedded model with the same seed, so with the same problems, streams and
masks; two run at a time, a thread each. Batches are small, and each is used four times (--updates), which is off-policy
in the oldest sense, with the full model's samples too; the nested ones are far off besides (five of twelve layers are
skipped). It ends in a table and a plot, and leaves in FOLDER demo.svg and the runs. docs/log.md has three seeds of it.
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
from support.log import read, report_error

ROOT = Path(__file__).resolve().parents[1]
STEPS, PROBLEMS = 30, 200
FLAGS = f"--steps {STEPS} --prompts 4 --updates 4 --lr 3e-4 --eval-every 15 --save-every 1000 --device cpu"
NESTED = "--skip-ratio 0.4"
ARMS = {  # mark in the plot: name, and what it adds to FLAGS
    "u": ("full, uncorrected (E4)", "--skip-ratio 0 --gradient on-policy"),
    "f": ("full, IS by sequence (E5)", "--skip-ratio 0 --gradient is-sequence"),
    "x": ("nested, uncorrected (E4)", f"{NESTED} --gradient on-policy"),
    "t": ("nested, IS by token (E6)", f"{NESTED} --gradient is"),
    "p": ("nested, IS by prefix (E9)", f"{NESTED} --gradient is-prefix"),
    "s": ("nested, IS by sequence (E5)", f"{NESTED} --gradient is-sequence"),
    "r": ("nested, Retrace (E7)", f"{NESTED} --gradient retrace"),
}


def run(mark: str, folder: Path, seed: int) -> list[dict]:
    """The metrics of an arm. ValueError with its last words if it fails."""
    name, flags = ARMS[mark]
    given = [*FLAGS.split(), *flags.split(), "--test-file", str(folder / "test.jsonl"), "--seed", str(seed)]
    out, start = folder / mark, time.perf_counter()
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
    lines = [f"{'':30}" + "".join(f"{name:>10}" for name in ("before", "after", "reward", "whole", "ESS"))]
    for mark, rows in arms.items():
        steps, accuracy = report.reinforced(rows), [y for _, y in report.points(rows)[1]]
        means = [statistics.fmean(row[key] for row in steps) for key in ("reward", "sequence_acceptance", "ess")]
        cells = [f"{accuracy[0]:.1%}", f"{accuracy[-1]:.1%}", *(f"{mean:.2f}" for mean in means)]
        lines.append(f"{f'{mark} {ARMS[mark][0]}':30}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def draw(arms: dict[str, list[dict]], path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "demo"  # the same figure is the same file
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for mark, rows in arms.items():
        steps, accuracy = zip(*report.points(rows)[1], strict=True)
        axes.plot(steps, [100 * y for y in accuracy], "o-", label=ARMS[mark][0])
    axes.set(xlabel="step", ylabel="accuracy of the full model, sampled, %", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, help="folder for demo.svg and the runs (default: a new one)")
    parser.add_argument("--seed", type=int, default=0, help="of all arms (default: 0)")
    a = parser.parse_args(arguments)
    try:
        folder = (a.out or Path(tempfile.mkdtemp(prefix="demo-"))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        asked = [{"question": p.question, "answer": p.answer} for p in data.load("arith", "test")[:PROBLEMS]]
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")  # no other split then
        print(f"{len(ARMS)} runs in {folder}, two at a time: train.py {FLAGS}", flush=True)
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(run, mark, folder, a.seed) for mark in ARMS]
            try:
                arms = {mark: ended.result() for mark, ended in zip(ARMS, runs, strict=True)}
            except BaseException:
                pool.shutdown(cancel_futures=True)  # Ctrl-C, or an arm that failed: begin no other
                raise
        accuracies = {mark: report.points(rows)[1] for mark, rows in arms.items()}
        print(f"\n{table(arms)}\n\n{report.plot(accuracies, STEPS)}\naccuracy of the full model, sampled")
        if importlib.util.find_spec("matplotlib") is None:
            print("demo.svg needs matplotlib, which is not here", file=sys.stderr)
            return 0
        draw(arms, folder / "demo.svg")
        print(f"picture: {folder / 'demo.svg'}")
    except (OSError, ValueError, KeyboardInterrupt) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
