"""Reinforced runs of one checkpoint, arm by arm and seed by seed, to be held against each other by docs/comparison.py.

    python -m docs.study --out runs/svamp --plan -- --model warm/checkpoint --dataset svamp --data-dir DATA
    python -m docs.study --out runs/svamp        -- --model warm/checkpoint --dataset svamp --data-dir DATA

What stands behind -- are flags of train.py, for all arms alike. An arm runs --steps steps and is evaluated; then it
goes on to as many as fit into the seconds of the first arm's (of sampling, scoring and updating, and of measuring
nested models), if those are a tenth more, and is evaluated again. A study that is cut goes on where it was when the
same command is given. --plan times three steps of each arm instead, and says how many hours the whole takes.

OUT/ARM-SEED/ keeps metrics.jsonl, config.json, and correct.json: by number of steps a text for each problem, of a
character a sample, 1 where it is correct. Checkpoints go when a run is done.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docs.comparison import seconds
from report import reinforced
from support.log import read, report_error
from support.settings import flag, read_settings

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"full": "--skip-ratio 0 --gradient on-policy"} | {
    f"{ratio} {gradient}": f"--skip-ratio {ratio} --gradient {gradient}"
    for ratio in (0.1, 0.2, 0.3)
    for gradient in ("on-policy", "is-sequence", "retrace")
}
ARMS |= {
    "full 4 prompts": f"{ARMS['full']} --prompts 4",
    "full 4 samples": f"{ARMS['full']} --samples 4",
    "full 2 samples": f"{ARMS['full']} --samples 2",
    "0.2 4 samples": f"{ARMS['0.2 is-sequence']} --samples 4",
}
WORTH = 1.1  # times as many steps in the same seconds: below it they are not evaluated once more
# settings of a run that are flags of evaluate.py as well
TOO = "dataset data_dir dtype device grader prompt_template max_new_tokens temperature".split()


def call(command: list, log: Path) -> None:
    """Runs a script of the project; ChildProcessError that names the log where it fails."""
    with log.open("a", encoding="utf-8") as file:
        if subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=file).returncode:
            raise ChildProcessError(f"{command[0]} failed, see {log}; the same command continues from there")


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def steps_of(folder: Path) -> list[dict]:
    return reinforced(read(folder)) if (folder / "metrics.jsonl").is_file() else []


def train(a: argparse.Namespace, folder: Path, arm: str, seed: int, steps: int) -> None:
    """Up to so many steps, from the beginning or from where the run stopped."""
    once = ["--eval-every", 10**6, "--eval-problems", 8, "--keep", 1]  # what is compared is evaluated on its own
    flags = [*a.flags, *ARMS[arm].split(), *once, "--seed", seed]
    if (folder / "config.json").is_file():
        flags += ["--resume"]  # refused where a flag has changed
    if len(steps_of(folder)) < steps:
        call(["train.py", *flags, "--steps", steps, "--out", folder], log_of(folder))


def evaluate(a: argparse.Namespace, folder: Path, steps: int) -> None:
    """Adds to correct.json what the checkpoint gets right."""
    path = folder / "correct.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if str(steps) in known:
        return
    s = read_settings(folder)
    flags = [word for name in TOO if getattr(s, name) for word in (flag(name), getattr(s, name))]
    flags += ["--model", folder / "checkpoint", "--split", a.split, "--samples", a.samples]
    flags += ["--problems", a.problems, "--batch", a.batch]
    texts = folder / "generated.jsonl"
    call(["evaluate.py", *flags, "--out", texts], log_of(folder))
    correct = [json.loads(line)["correct"] for line in texts.read_text(encoding="utf-8").splitlines()]
    starts = range(0, len(correct), a.samples)
    known[str(steps)] = ["".join(str(int(each)) for each in correct[i : i + a.samples]) for i in starts]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=0), encoding="utf-8")
    os.replace(partial, path)
    texts.unlink()


def run(a: argparse.Namespace, arm: str, seed: int) -> None:
    """One run, whole; nothing if it is done."""
    name = f"{arm}-{seed}".replace(" ", "-")
    folder, first = a.out / name, a.out / f"{a.arms[0]}-{seed}".replace(" ", "-")
    if not (folder / "checkpoint").is_dir() and (folder / "correct.json").is_file():
        return
    train(a, folder, arm, seed, a.steps)
    evaluate(a, folder, a.steps)
    more = round(a.steps * seconds(steps_of(first)[: a.steps]) / seconds(steps_of(folder)[: a.steps]))
    if more >= WORTH * a.steps and folder != first:
        train(a, folder, arm, seed, more)
        evaluate(a, folder, more)
    for checkpoint in folder.glob("checkpoint*"):
        shutil.rmtree(checkpoint)
    print(f"{name}: {seconds(steps_of(folder)):.1f} s a step", flush=True)


def plan(a: argparse.Namespace) -> None:
    """Times three steps of each arm."""
    total = 0.0
    for arm in a.arms:
        folder = a.out / f"plan-{arm}".replace(" ", "-")
        train(a, folder, arm, 0, 3)
        each = seconds(steps_of(folder))
        total += each * a.steps * len(a.seeds) / 3600
        print(f"{arm}: {each:.1f} s a step", flush=True)
        shutil.rmtree(folder)
    print(f"{total:.1f} hours of steps for {len(a.seeds)} seeds, one run at a time; evaluations come to that")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    own, flags = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="the first is what others are held to"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=40, help="of each arm (default: 40)")
    parser.add_argument("--split", default="test", choices=("test", "valid"), help="what is evaluated (default: test)")
    parser.add_argument("--samples", type=int, default=8, help="of each problem, when evaluated (default: 8)")
    parser.add_argument("--problems", type=int, default=300, help="that are evaluated, at most (default: 300)")
    parser.add_argument("--batch", type=int, default=64, help="completions at a time there (default: 64)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each with OMP_NUM_THREADS threads (default: 1)"
    )
    parser.add_argument("--plan", action="store_true", help="time three steps of each arm, and say how long all takes")
    a = parser.parse_args(own)
    a.flags = flags
    try:
        if any(word.split("=")[0] == "--test-file" for word in flags):
            raise ValueError("--test-file: a study evaluates a split of --dataset; give none")
        a.out.mkdir(parents=True, exist_ok=True)
        if a.plan:
            plan(a)
            return 0
        with ThreadPoolExecutor(a.jobs) as pool:
            for arms in (a.arms[:1], a.arms[1:]):  # the first says how long the others may take
                list(pool.map(lambda job: run(a, *job), [(arm, seed) for seed in a.seeds for arm in arms]))
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
