"""What a run says: metrics.jsonl, samples.jsonl, a line a step on the terminal; and what a command says that fails.

METRICS lists the keys of a line of metrics.jsonl; docs/method.md says what each is.
"""

import json
import math
import os
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from support.distributed import from_rank_0, let_rank_0_speak, on_rank_0, rank

ACCURACIES = tuple(f"{split}_accuracy{mode}" for split in ("test", "wordings", "valid") for mode in ("", "_sampled"))
# The keys of a line of metrics.jsonl; null where a figure is not defined.
METRICS = (
    *("phase", "step", "reward", "loss", "grad_norm", "lr", "stepped"),
    *(key for accuracy in ACCURACIES for key in (accuracy, f"{accuracy}_se")),
    *("skipped_layers", "acceptance", "acceptance_p5", "sequence_acceptance", "ess"),
    *("k1", "k3", "ratio_min", "ratio_max", "max_abs_log_ratio", "entropy"),
    *("zero_variance_groups", "unfinished", "mean_length", "tokens", "tokens_per_second"),
    *("full_reward", "full_mean_length", "full_tokens_per_second"),
    *("seconds_sample", "seconds_grade", "seconds_update", "seconds_measure", "seconds_evaluate"),
)

RENAMED = {"silent_groups": "zero_variance_groups", "cut_off": "unfinished", "seconds_score": "seconds_grade"}

warnings.formatwarning = lambda message, *_: f"warning: {message}\n"


class Log:
    """What a run leaves behind: metrics.jsonl, samples.jsonl, a line a step on the terminal; each phase's time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.phase_now = ""  # for what is said when memory runs out
        self.seconds = {}  # since the last line
        self.sizes = {"samples.jsonl": 0, "metrics.jsonl": 0}  # bytes
        self.last: tuple[str, int] | None = None  # phase and step of the last line

    @contextmanager
    def phase(self, name: str):
        self.phase_now, start = name, time.perf_counter()
        yield
        self.phase_now = ""  # not in a finally: after an error it says where it came from
        self.seconds[f"seconds_{name}"] = self.seconds.get(f"seconds_{name}", 0.0) + time.perf_counter() - start

    def write(self, phase: str, step: int, last_step: int, figures: dict, samples: list[dict]) -> str:
        """Adds the samples to samples.jsonl, then a line to metrics.jsonl. Returns the line for the terminal."""
        figures = figures | self.seconds
        unknown = figures.keys() - set(METRICS)
        assert not unknown, f"not among METRICS: {unknown}"
        row = {key: figures.get(key) for key in METRICS} | {"phase": phase, "step": step}
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        on_rank_0(lambda: self.add(samples, row))
        self.sizes = from_rank_0(lambda: {name: (self.folder / name).stat().st_size for name in self.sizes})
        self.seconds, self.last = {}, (phase, step)
        return readable(row, last_step)

    def add(self, samples: list[dict], row: dict) -> None:
        for name, rows in (("samples.jsonl", samples), ("metrics.jsonl", [row])):
            path, text = self.folder / name, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
            with path_in_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(text)

    def rewind(self, sizes: dict[str, int]) -> None:
        """Cuts off what was written after a checkpoint. ValueError where a file is shorter than it was then, or is not
        what was written."""
        for name, size in sizes.items():
            path = self.folder / name
            if size > (path.stat().st_size if path.is_file() else 0):
                raise ValueError(f"{path}: shorter than when the checkpoint was written, lines were taken out")
        path = self.folder / "metrics.jsonl"
        rows = parse(path, path.read_bytes()[: sizes["metrics.jsonl"]]) if path.is_file() else []
        self.last = (rows[-1]["phase"], rows[-1]["step"]) if rows else None
        on_rank_0(lambda: self.cut(sizes))
        self.sizes = sizes

    def cut(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            (self.folder / name).touch()
            os.truncate(self.folder / name, size)


def examples(step: int, mode: str, records: list[list[dict]]) -> list[dict]:
    """The first sample of up to four problems, to see what the model does."""
    return [{"step": step, "mode": mode, **samples[0]} for samples in records[:4]]


def groups(step: int, records: list[list[dict]], rollout, log_rho: Tensor, advantages: Tensor) -> list[dict]:
    """Two whole groups of a batch, those with a signal first: each completion with its tokens, and how probable the
    nested and the full model find each (log η, log π), for look.py.

    records, advantages: by problem and sample; rollout, log_rho: by row.
    """
    kept = []
    for p in sorted(range(len(records)), key=lambda p: not advantages[p].any())[:2]:
        for g, record in enumerate(records[p]):
            row = p * len(records[p]) + g
            tokens, log_eta, ratio = (x[row, rollout.mask[row]] for x in (rollout.tokens, rollout.logprobs, log_rho))
            of_tokens = {"tokens": tokens.tolist()}
            for name, x in (("log_eta", log_eta), ("log_pi", log_eta + ratio)):
                of_tokens[name] = [round(number, 5) for number in x.tolist()]
            figures = {"advantage": round(advantages[p, g].item(), 5), **of_tokens}
            kept.append({"step": step, "mode": "nested, sampled", "group": p, **record, **figures})
    return kept


@contextmanager
def path_in_errors(path: Path):
    """An OSError within names the file, which it does not by itself where the disk is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def writable(path: Path):
    """Around the work whose result goes into a file. What cannot be written to says so before the work; where the work
    fails, no empty file is left."""
    there = path.exists()
    on_rank_0(lambda: path.open("a").close())
    try:
        yield
    except BaseException:
        if rank() == 0 and not there and path.stat().st_size == 0:
            path.unlink()
        raise


def readable(f: dict, last_step: int) -> str:
    """A line of metrics.jsonl for the terminal; of a reinforced step two, of at most 80 characters."""
    if f["phase"] == "warmup":
        return f"warm-up {f['step']}/{last_step}  loss {f['loss']:.3f}  {f['seconds_update']:.1f} s"
    if f["phase"] == "evaluate":
        key = "test_accuracy" if f["test_accuracy"] is not None else "valid_accuracy"
        sampled, error, greedy = f[f"{key}_sampled"], f[f"{key}_sampled_se"], f[key]
        split = key.removesuffix("_accuracy")
        return f"step {f['step']}/{last_step}  {split}: sampled {sampled:.1%} ± {error:.1%}, greedy {greedy:.1%}"
    groups = f"zero-variance groups {f['zero_variance_groups']:.0%}" if f["stepped"] else "no signal, no step"
    batch = f"step {f['step']}/{last_step}  reward {f['reward']:.3f}  {groups}  unfinished {f['unfinished']:.0%}"
    off_policy = f"acceptance p5 {f['acceptance_p5']:.2f}  sequence acceptance {f['sequence_acceptance']:.2f}"
    return f"{batch}\n  {off_policy}  mean length {f['mean_length']:.0f}  {f['tokens_per_second']:.0f} tokens/s"


def read(folder: str | Path) -> list[dict]:
    """The reinforced steps of a run and its evaluations, in their order.

    Raises FileNotFoundError where no run is, ValueError where its metrics are broken or hold no such line.
    """
    path = Path(os.path.expanduser(folder)) / "metrics.jsonl"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; expected a run's")
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; a run writes it with its first evaluation or step")
    rows = [row for row in parse(path, path.read_bytes()) if row["phase"] in ("reinforce", "evaluate")]
    if not rows:
        raise ValueError(f"{path}: no reinforced step yet")
    return rows


def parse(path: Path, content: bytes) -> list[dict]:
    """The lines of a metrics.jsonl. ValueError that names the first which is none."""
    rows = []
    for n, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and (old := sorted(row.keys() & RENAMED)):
            raise ValueError(f"{path}: of an earlier version; {old[0]} is {RENAMED[old[0]]} now (CHANGELOG.md)")
        if not isinstance(row, dict) or row.keys() != set(METRICS) or not isinstance(row["step"], int):
            shown = line[:80].decode(errors="replace")
            raise ValueError(f"{path}, line {n}: not the metrics of a run of this version, or cut off: {shown}")
        rows.append(row)
    return rows


def report_error(error: BaseException, advice: str = "take a smaller model") -> int:
    """One line on what went wrong, and the exit status: 2 for what the user gave, 1 for trouble of the machine or the
    numbers, 130 for Ctrl-C.  advice: what to do where memory ran out.  Raises what is none of these: a bug of ours."""
    if isinstance(error, KeyboardInterrupt):
        if rank() == 0:
            print("interrupted", file=sys.stderr)
        return getattr(error, "status", 130)
    let_rank_0_speak()
    if out_of_memory(error):
        error = f"out of memory; {advice}"
    elif not isinstance(error, ValueError | OSError | FloatingPointError | OverflowError):
        raise error
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (not to flush the broken one at the end)
        return 1
    if isinstance(error, OSError) and error.filename and error.strerror:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    theirs = ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError | BlockingIOError
    return 2 if isinstance(error, theirs) else 1


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error means: allocators raise RuntimeErrors, each with words of its own."""
    signs = ("out of memory", "t allocate memory", "alloc_failed")
    said = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    return said or isinstance(error, MemoryError)
