"""Tables and plots of runs, from their metrics.jsonl and config.json alone.

    python report.py runs/NAME        # table and curve of a run, ended or not
    python report.py runs             # a line for each run in a folder; runs/ if none is named
    python report.py runs/A runs/B    # side by side; seeds of one arm averaged

train.py prints the first at the end of a run.
"""

import support.interrupt  # noqa: F401 (Ctrl-C during the imports is one line)

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from support.log import read, report_error
from support.pictures import ACCURACY_NAMES, PARTS, draw, means, overlay
from support.provenance import deciding, differences
from support.provenance import read as made_with
from support.settings import Settings, parse_strictly, read_settings, words

OFF_POLICY = ("acceptance", "acceptance_p5", "sequence_acceptance", "ess")  # all between 0 and 1
SAID_BY = {"model": ("model", "tokens"), "adapter": ("model",), "prompt_template": ("tokens",), "device": ("device",)}
SAID_BY |= dict.fromkeys(("dataset", "data_dir", "test_file", "eval_split"), ("problems",))
PROBLEMS = ("dataset", "test_file", "eval_problems")  # settings that choose what is evaluated


def reinforced(rows: list[dict]) -> list[dict]:
    """The steps alone, without the evaluations."""
    return [row for row in rows if row["phase"] == "reinforce"]


def table(rows: list[dict]) -> str:
    """Accuracy before and after; the nested model's speed and reward beside the full one's; how far off-policy."""
    steps, lines = reinforced(rows), [f"{'accuracy':28}{'before':>16}{'after':>16}"]
    for key, name in ACCURACY_NAMES.items():
        known = [(row[key], row[f"{key}_se"]) for row in rows if row[key] is not None]
        if known:
            before, after = (f"{mean:.1%} ± {error:.1%}" for mean, error in (known[0], known[-1]))
            points = f"{100 * (known[-1][0] - known[0][0]):+10.1f} points"
            lines.append(f"{name:28}{before:>16}" + (f"{after:>16}{points}" if known[1:] else f"{'–':>16}"))
    if not steps:
        return "\n".join(lines)

    pairs = [row for row in steps if row["full_tokens_per_second"]]
    if pairs:
        batches = f"sampling, {len(pairs)} batch{'es' * (len(pairs) > 1)}"
        lines += ["", f"{batches:28}{'nested':>16}{'full':>16}"]
        compared = (
            ("tokens/s", "tokens_per_second", 0),
            ("tokens a completion", "mean_length", 1),
            ("reward", "reward", 3),
        )
        for name, key, digits in compared:
            nested, full = (statistics.median(row[side + key] for row in pairs) for side in ("", "full_"))
            times = f"{nested / full:9.2f} times" if key == "tokens_per_second" else ""
            lines.append(f"{name:28}{nested:16,.{digits}f}{full:16,.{digits}f}{times}")

    n = max(1, len(steps) // 10)
    parts = {f"the first {n}": steps[:n], f"the last {n}": steps[-n:], f"all {len(steps)}": steps}
    lines += ["", f"{'batches, the mean of':28}" + "".join(f"{name:>16}" for name in parts)]
    for key in ("reward", *OFF_POLICY, "zero_variance_groups", "unfinished"):
        known = ([row[key] for row in part if row[key] is not None] for part in parts.values())
        name = key.replace("zero_variance", "zero-variance").replace("_", " ")
        lines.append(f"{name:28}" + "".join(f"{statistics.fmean(k or [math.nan]):16.3f}" for k in known))
    return "\n".join(lines)


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
    """(step, value) of each mark, values from 0 or the lowest up, steps from 0 to the last; later marks hide earlier
    ones."""
    values = [0.0, *(y for each in series.values() for _, y in each)]
    bottom, span = min(values), max(values) - min(values) or 1.0
    grid = [[" "] * (width + 1) for _ in range(height + 1)]
    for mark, each in series.items():
        for x, y in each:
            grid[round((y - bottom) / span * height)][round(x / (last or 1) * width)] = mark
    labels = {height: f"{bottom + span:.2f}", 0: f"{bottom:.2f}"}
    lines = [f"{labels.get(level, ''):>5} |{''.join(grid[level])}".rstrip() for level in reversed(range(height + 1))]
    return "\n".join([*lines, f"{'':5} +{'-' * width}> step {last or 1}"])


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


@dataclass
class Arm:
    """Runs that differ in the seed only: of one code, model and set of problems."""

    given: dict | None  # the settings that are not the defaults, without the seed; None: not known
    made_with: list[dict] = field(default_factory=list)  # its first run; empty: not known
    label: str = ""  # a number, and the settings in which it differs from other arms; the folders' names without any
    folders: list[Path] = field(default_factory=list)
    runs: list[list[dict]] = field(default_factory=list)  # the lines of each seed

    @property
    def split(self) -> str:
        """What its accuracy was measured on."""
        known = (row["valid_accuracy_sampled"] is not None for rows in self.runs for row in rows)
        return "valid" if any(known) else "test"


def settings(folder: Path) -> Settings | None:
    """The settings of a run. None where config.json is not there, or not of this version."""
    try:
        return read_settings(folder)
    except (ValueError, OSError):
        return None


def command(folder: Path) -> str:
    """What began a run, without the folder that it writes to; the folder's name where its settings are not known."""
    s = settings(folder)
    return f"python train.py {words(without(s.given(), 'out'))}" if s else folder.resolve().name


def without(given: dict, *names: str) -> dict:
    return {name: value for name, value in given.items() if name not in names}


def changes(folder: Path) -> list[str]:
    """What was not so any more where a run was resumed."""
    return [
        f"{folder}: with other {', '.join(differences(before, after))} after {after['after']}"
        for before, after in pairwise(made_with(folder))
    ]


def arms_of(folders: list[Path]) -> tuple[list[Arm], list[str]]:
    """The runs by their settings, and what a reader has to know of them. The same run twice is taken once."""
    arms: dict[str, Arm] = {}
    seen: dict[str, Path] = {}
    notes = []
    for folder in folders:
        rows, s, made = read(folder), settings(folder), made_with(folder)
        given = without(s.given(), "out", "seed") if s else None
        key = repr((given, deciding(made))) if s else str(folder.resolve())
        first = seen.setdefault(f"{key} {s and s.seed}", folder)
        if first is not folder:
            notes.append(f"{folder}: left out, its settings and seed are those of {first}")
            continue
        if s is None:
            notes.append(f"{folder}: its settings are not known, its config.json is missing or of another version")
        elif rows[-1]["step"] < s.steps:
            notes.append(f"{folder}: not finished, at step {rows[-1]['step']} of {s.steps}; its arm ends there")
        notes += changes(folder)
        arm = arms.setdefault(key, Arm(given, made))
        if arm.made_with and (differ := differences(arm.made_with[-1], made[-1])):
            notes.append(
                f"{folder}: with other {', '.join(differ)} than {arm.folders[0]}, do not compare their seconds"
            )
        arm.folders.append(folder)
        arm.runs.append(rows)
    known = [arm.given for arm in arms.values() if arm.given is not None]
    usual = asdict(Settings())
    differ = [name for name in usual if any(given.get(name) != known[0].get(name) for given in known)]
    for n, arm in enumerate(arms.values(), start=1):
        label = words({name: arm.given.get(name, usual[name]) for name in differ}) if arm.given is not None else ""
        if other := unlike(next(iter(arms.values())), arm):
            label += f" with other {', '.join(other)}"
        arm.label = f"{n:<3}{label.strip() or ', '.join(folder.name for folder in arm.folders)}"
        lines = set.intersection(*({(row["phase"], row["step"]) for row in rows} for rows in arm.runs))
        arm.runs = [[row for row in rows if (row["phase"], row["step"]) in lines] for rows in arm.runs]
    return list(arms.values()), notes


def unlike(first: Arm, other: Arm) -> list[str]:
    """What two arms were not made with alike, besides what their settings say."""
    if other is first or first.given is None or other.given is None:
        return []
    if not (first.made_with and other.made_with):
        return ["code, perhaps"] if first.given == other.given else []
    differ = differences(first.made_with[-1], other.made_with[-1])
    said = {key for name, keys in SAID_BY.items() if first.given.get(name) != other.given.get(name) for key in keys}
    return [name for name in differ if name not in said] or (["code before"] if first.given == other.given else [])


def cell(known: list[float], show: Callable[[float], str]) -> str:
    """The mean over the seeds, ± its standard error where there are several."""
    if not known:
        return "–"
    error = f" ± {show(statistics.stdev(known) / math.sqrt(len(known)))}" if known[1:] else ""
    return show(statistics.fmean(known)) + error


def figures(arm: Arm) -> tuple[dict[str, str], ...]:
    """Three lines by the headings of their columns: what it learned, how far off-policy it was, what a step took."""
    share, number, whole = "{:.1%}".format, "{:.3f}".format, "{:,.0f}".format
    unmeasured = {"seconds_measure": 0.0}  # in most steps
    steps = [[row | unmeasured if row["seconds_measure"] is None else row for row in reinforced(r)] for r in arm.runs]
    tenth = [rows[-max(1, len(rows) // 10) :] for rows in steps]

    def over(runs: list[list[dict]], key: str, show: Callable[[float], str]) -> str:
        known = ([row[key] for row in rows if row[key] is not None] for rows in runs)
        return cell([statistics.fmean(each) for each in known if each], show)

    def accuracy(key: str) -> str:
        known = ([(row[key], row[f"{key}_se"]) for row in rows if row[key] is not None] for rows in arm.runs)
        last = [each[-1] for each in known if each]
        return cell([mean for mean, _ in last], share) + (f" ± {last[0][1]:.1%}" if len(last) == 1 else "")

    learned = {
        "seeds": str(len(arm.runs)),
        "step": str(max((row["step"] for row in arm.runs[0]), default=0)),
        "split": arm.split,
        "sampled": accuracy(f"{arm.split}_accuracy_sampled"),
        "greedy": accuracy(f"{arm.split}_accuracy"),
        "reward, last 10%": over(tenth, "reward", number),
    }
    names = ("acceptance", "p5", "sequence", "ESS")
    off_policy = {name: over(steps, key, number) for name, key in zip(names, OFF_POLICY, strict=True)}
    took = {f"s to {part}": over(steps, f"seconds_{part}", number) for part in PARTS}
    return learned, off_policy, took | {"tokens/s": over(steps, "tokens_per_second", whole)}


def comparison(arms: list[Arm]) -> str:
    """The settings in which the arms differ, and the lines of `figures`, a table for each kind."""
    lines = [line for arm in arms for line in (arm.label, f"   {', '.join(map(str, arm.folders))}")]
    for block in zip(*map(figures, arms), strict=True):
        lines += ["", "   " + "".join(f"{heading:>17}" for heading in block[0])]
        lines += [f"{n:<3}" + "".join(f"{text:>17}" for text in row.values()) for n, row in enumerate(block, start=1)]
    return "\n".join(lines)


def compare(folders: list[Path], path: Path) -> None:
    """Prints the comparison of runs, and leaves its picture in `path` where matplotlib is."""
    arms, notes = arms_of(folders)
    problems = {tuple(map(arm.given.get, PROBLEMS)) for arm in arms if arm.given is not None}
    if len(problems) > 1 or len({arm.split for arm in arms}) > 1:
        notes.append("the arms were evaluated on different problems: do not compare their accuracies")
    print(comparison(arms))
    print("\n± of several seeds: standard error over the seeds; of one run: over the problems")
    for note in notes:
        print(f"note: {note}")
    picture(path, overlay, {arm.label: arm.runs for arm in arms})


def picture(path: Path, drawing: Callable, *given) -> None:
    """Says where a picture is, or what it needs."""
    try:
        drawing(*given, path)
        print(f"picture: {path}")
    except ImportError:
        print(f"({path.name} needs matplotlib, which is not here)")


def print_report(folder: str | Path) -> None:
    """Prints the table and the curve of the run in `folder`, and leaves curve.png there where matplotlib is."""
    folder = Path(os.path.expanduser(folder))
    rows = read(folder)
    print("\n" + "".join(f"note: {change}\n" for change in changes(folder)) + f"{table(rows)}\n")
    if len(rows) > 1:
        print(curve(rows))
        if any(row["skipped_layers"] for row in rows):
            print("\nThe reward is what nested models earn. It is the full model that learns, so its")
            print("accuracy can rise while their reward does not.")
        picture(folder / "curve.png", draw, rows, command(folder))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    about = "a run's folder, which holds metrics.jsonl; a folder of runs; or runs (default: the folder runs)"
    parser.add_argument("runs", nargs="*", help=about)
    parser.add_argument(
        "--out", metavar="FILE.png", help="picture of a comparison; comparison.png beside the first run"
    )
    a = parse_strictly(parser, arguments)
    folders = [Path(os.path.expanduser(run)) for run in a.runs or ["runs"]]
    path = Path(os.path.expanduser(a.out)) if a.out else folders[0].resolve().parent / "comparison.png"
    try:
        if len(folders) > 1:
            others = [each for each in folders if each.resolve() != path.resolve()]  # runs/* may hold the picture
            compare(others or folders, path)
        elif a.out:
            raise ValueError(f"--out is {a.out}, but only {folders[0]} is given; expected two runs or more")
        elif not (folders[0] / "metrics.jsonl").exists() and (runs := runs_in(folders[0])):
            print(runs)
        elif not a.runs and not (folders[0] / "metrics.jsonl").exists():
            raise FileNotFoundError("no runs in runs/, where train.py puts them; name the folder of a run")
        else:
            print_report(folders[0])
    except (ValueError, OSError) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
