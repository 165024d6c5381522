"""What a training step costs, as a sum of products: fitted on some steps, checked on others, and what follows from it.

    python -m docs.cost --model M --dataset svamp --data-dir DATA --out FILE.jsonl    # measures, and reads
    python -m docs.cost --read FILE.jsonl                                             # the tables, of what is there
    python -m docs.cost --gpu                                                         # an estimate, of published rates

The seconds of a part are a sum of features, each times a rate that is fitted, by least squares of the relative error,
and is not negative. A feature counts what one kind of work is done on; of L layers k are skipped, L − k stay.

    sampling    prompt tokens × L (the full model reads them); decode steps; tokens (the head, the draw); decode steps
                and tokens × (L − k) (products); tokens × the tokens before them × (L − k) (attention); tokens × k
    scoring     the forward passes of an update: micro-batches; tokens of prompts and completions; tokens × the tokens
                before them; completion tokens (the head)
    backward    the same
    optimiser   1

Rates are fitted on completions of one length after random prompts, in groups of 8, and checked on other such batches
and on rollouts of a data set, whose lengths differ.
"""

import argparse
import json
import random
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

import data
from bench import seconds, table, timed
from rollout import Rollout, generate
from skip import Bypass
from support.batches import micro_batches
from support.log import report_error
from support.optimizer import Optimizer
from support.pretrained import load_model
from support.settings import Settings
from train import update

G = 8  # completions of a prompt
FIT = [  # rows, tokens of a prompt, tokens of a completion, share of the layers that is skipped
    (8, 96, 64, 0.0), (16, 96, 32, 0.0), (16, 96, 128, 0.0), (16, 32, 64, 0.3), (32, 256, 32, 0.0), (32, 96, 128, 0.3),
    (32, 256, 64, 0.5), (64, 96, 16, 0.0), (64, 96, 16, 0.3), (64, 96, 64, 0.0), (64, 96, 64, 0.3), (64, 32, 128, 0.0),
    (64, 96, 128, 0.5), (128, 32, 32, 0.0), (128, 96, 16, 0.3),
]  # fmt: skip
CHECK = [
    (16, 160, 96, 0.4), (32, 96, 64, 0.1), (32, 32, 160, 0.0), (64, 96, 32, 0.2), (64, 160, 96, 0.0),
    (64, 160, 96, 0.2), (64, 64, 256, 0.0), (64, 64, 256, 0.3),
]  # fmt: skip
REAL = (0.0, 0.2)  # of the layers skipped, while 8 problems × 8 are sampled

# NVIDIA's H100 SXM: bytes a second, dense bfloat16 operations a second, and the shares of them that we assume in
# decoding and in training.
BANDWIDTH, COMPUTE, READ, USED = 3.35e12, 989e12, 0.6, 0.4
MODELS = {  # weights of a layer, of the head, layers, bytes of keys and values that a token has in a layer
    "Qwen2.5-1.5B": (46.8e6, 233e6, 28, 2 * 2 * 128 * 2),
    "Qwen2.5-7B": (233e6, 545e6, 28, 2 * 4 * 128 * 2),
}


def sampling_features(rollout: Rollout, n_layers: int, n_skipped: int) -> list[float]:
    prompts = {tuple(prompt) for prompt in rollout.prompts}
    lengths, stay = rollout.mask.sum(dim=1), n_layers - n_skipped
    before = torch.tensor([len(prompt) for prompt in rollout.prompts])
    read = len(prompts) * max(map(len, prompts))
    steps, tokens = rollout.mask.shape[1] - 1, int((lengths - 1).sum())  # the first token comes with the prompt
    seen = int(((lengths - 1) * before + lengths * (lengths - 1) // 2).sum())
    return [read * n_layers, steps, tokens, steps * stay, tokens * stay, seen * stay, tokens * n_skipped]


def pass_features(rollout: Rollout) -> list[float]:
    total = np.zeros(4)
    for rows, _ in micro_batches(rollout.prompts, rollout.mask, rollout.mask[:, 0], Settings().micro_batch_tokens):
        prompts = {tuple(rollout.prompts[row]) for row in rows}
        longest, width = max(map(len, prompts)), int(rollout.mask[rows].sum(dim=1).max()) - 1
        read, written = len(prompts) * longest, len(rows) * width
        seen = read * longest + written * (longest + width)
        total += [1, read + written, seen, int(rollout.mask[rows].sum())]
    return total.tolist()


def features(rollout: Rollout, n_layers: int, n_skipped: int) -> dict[str, list[float]]:
    passes = pass_features(rollout)
    own = sampling_features(rollout, n_layers, n_skipped)
    return {"sampling": own, "scoring": passes, "backward": passes, "optimiser": [1.0]}


class Machine:
    """Times the parts of a step of one model."""

    def __init__(self, a: argparse.Namespace):
        self.model, self.tokenizer = load_model(a.model, a.dtype, a.device)
        self.optimizer = Optimizer(self.model)
        C, self.L = self.model.config.hidden_size, self.model.config.num_hidden_layers
        shapes = (self.L, C // 4, C), (self.L, C, C // 4), (self.L, 2, C)  # of a linear bypass that adds nothing
        zeros = partial(torch.zeros, dtype=self.model.dtype, device=self.model.device)
        self.bypass = Bypass(*map(zeros, shapes))

    def row(self, prompts: list, rows: int, length: int, share: float, eos_ids: list[int], repeats: int) -> dict:
        """Medians of the seconds of each part, with the features of the last rollout."""
        k = round(share * self.L)
        skip = tuple(layer < k for layer in range(self.L))  # which ones makes no difference to the time
        times = {"sampling": [], "scoring": [], "backward": [], "optimiser": []}
        n_samples, rollouts, own = rows // len(prompts), [], {}
        sample = partial(
            generate, self.model, prompts, n_samples, length, eos_ids, skip=skip, bypass=self.bypass, full_prefill=True
        )
        for _ in range(repeats):
            times["sampling"].append(seconds(lambda: rollouts.append(sample())))
            rollout = rollouts.pop()
            zeros = torch.zeros(rows, device=self.model.device)
            learn = partial(update, self.model, self.optimizer, rollout, s=Settings(), lr=0.0)
            # without a signal it is the forward pass alone
            times["scoring"].append(seconds(partial(learn, advantages=zeros)))
            with timed({"optimiser": (Optimizer, "step")}, own.__setitem__):
                whole = seconds(partial(learn, advantages=zeros + 1))
            times["optimiser"].append(own["optimiser"])
            times["backward"].append(whole - own["optimiser"] - times["scoring"][-1])
        rollout = rollout.on_cpu()
        shape = {"rows": rows, "prompt": max(map(len, prompts)), "length": rollout.mask.sum().item() / rows}
        shape |= {"skipped": k, "layers": self.L}
        medians = {part: statistics.median(each) for part, each in times.items()}
        return shape | {"seconds": medians, "features": features(rollout, self.L, k)}


def measure(a: argparse.Namespace) -> None:
    """Writes a line for each batch, in an order by chance: a slow minute must not hit one kind alone."""
    machine = Machine(a)
    real = [machine.tokenizer.encode_prompt(p.question) for p in data.load(a.dataset, "test", a.data_dir)[:8]]
    jobs = [("fit", *shape) for shape in FIT] + [("check", *shape) for shape in CHECK]
    jobs += [("data", len(real) * G, 0, a.max_new_tokens, share) for share in REAL]
    random.Random(0).shuffle(jobs)
    machine.row([[1] * 32], G, 8, 0.0, [], 1)  # the first is slow
    for kind, rows, prompt, length, share in jobs:
        prompts = real if kind == "data" else [[1 + i] * prompt for i in range(rows // G)]
        eos_ids = machine.tokenizer.eos_ids if kind == "data" else []
        row = {"kind": kind} | machine.row(prompts, rows, length, share, eos_ids, a.repeats)
        print({key: value for key, value in row.items() if key != "features"}, flush=True)
        with a.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fitted(rows: list[dict], part: str) -> np.ndarray:
    """The rates, seconds a feature. One that would be negative is left out, the worst first, until none is."""
    x, y = (np.array([row[key][part] for row in rows]) for key in ("features", "seconds"))
    x, kept = x / y[:, None], list(range(x.shape[1]))
    rates, scale = np.zeros(x.shape[1]), x.max(axis=0)
    while True:
        found, *_ = np.linalg.lstsq(x[:, kept] / scale[kept], np.ones(len(y)), rcond=None)
        if found.min() >= 0:
            rates[kept] = found / scale[kept]
            return rates
        kept.pop(int(found.argmin()))


def predicted(rates: dict[str, np.ndarray], of: dict[str, list[float]]) -> dict[str, float]:
    return {part: float(np.dot(of[part], each)) for part, each in rates.items()}


def errors(rows: list[dict], rates: dict[str, np.ndarray]) -> list[dict]:
    """How far predictions are from what was measured: median and worst, of each kind of batch."""
    lines = []
    for kind in ("fit", "check", "data"):
        some = [(row["seconds"], predicted(rates, row["features"])) for row in rows if row["kind"] == kind]
        line = {"batches": f"{kind}, {len(some)}"}
        for part in (*rates, "step"):
            sums = [[each[part] if part != "step" else sum(each.values()) for each in pair] for pair in some]
            off = [p / m - 1 for m, p in sums]
            line[part] = f"{statistics.median(map(abs, off)):.0%}, {max(off, key=abs):+.0%}"
        lines.append(line)
    return lines


def checked(rows: list[dict], rates: dict[str, np.ndarray]) -> list[dict]:
    """Predictions beside measurements that had no part in the fit."""
    lines = []
    for row in rows:
        if row["kind"] != "fit":
            line = {
                "batch": row["kind"],
                "rows": row["rows"],
                "prompt": row["prompt"],
                "length": f"{row['length']:.0f}",
            }
            line |= {"skipped": f"{row['skipped']} of {row['layers']}"}
            found = predicted(rates, row["features"])
            lines.append(line | {part: f"{found[part]:.2f} / {row['seconds'][part]:.2f}" for part in rates})
    return lines


def imagined(rows: int, prompt: int, length: int) -> Rollout:
    """A batch of which only the lengths are real."""
    mask = torch.ones(rows, length, dtype=torch.bool)
    prompts = [[row // G] * prompt for row in range(rows)]
    return Rollout(prompts, mask.long(), mask, torch.zeros(rows, length), mask[:, 0])


def shares(rates: dict[str, np.ndarray], n_layers: int, lengths=(16, 32, 64, 128, 256, 512)) -> list[dict]:
    """Where the time of a step of 64 completions goes, by their length, and what skipping would save of it."""
    lines = []
    for length in lengths:
        batch = imagined(64, 96, length)
        full = predicted(rates, features(batch, n_layers, 0))
        step = sum(full.values())
        line = {"length": str(length), "step, s": f"{step:.1f}", "sampling": f"{full['sampling'] / step:.0%}"}
        for ratio in (0.1, 0.2, 0.3):
            own = predicted(rates, features(batch, n_layers, round(ratio * n_layers)))
            line[f"{ratio}: sampling"] = f"{full['sampling'] / own['sampling']:.2f} × as fast"
            line[f"{ratio}: a step"] = f"{sum(own.values()) / step:.2f}"
        lines.append(line)
    return lines


def break_even(rates: dict[str, np.ndarray], n_layers: int, parts=(0.25, 0.35, 0.5, 0.7, 0.9)) -> list[dict]:
    """The progress that a nested step has to make, of a full one's, to be worth its seconds: 1 − s (1 − 1/g), by the
    share s of sampling in a full step and the gain g in its speed, here of 64 completions of 128 tokens."""
    batch, lines = imagined(64, 96, 128), []
    counted = [features(batch, n_layers, round(ratio * n_layers)) for ratio in (0, 0.1, 0.2, 0.3)]
    sampling = [predicted(rates, each)["sampling"] for each in counted]
    for s in parts:
        line = {"sampling's share": f"{s:.0%}"}
        for ratio, own in zip((0.1, 0.2, 0.3), sampling[1:], strict=True):
            line[f"{ratio}, {sampling[0] / own:.2f} × as fast"] = f"{1 - s * (1 - own / sampling[0]):.2f}"
        lines.append(line)
    return lines


def speculated(draft: float, check: float, full: float, acceptance: float, ahead: int) -> float:
    """How many times as fast as plain sampling self-speculation is (Leviathan et al., 2023): the nested model writes
    `ahead` tokens, each accepted with probability `acceptance`, and the full one reads them at once."""
    tokens = (1 - acceptance ** (ahead + 1)) / (1 - acceptance)
    return tokens * full / (ahead * draft + check)


def lossless(rates: dict[str, np.ndarray], n_layers: int, accepted: dict[int, float], rows=(1, 8, 64)) -> list[dict]:
    """The best of 1 to 8 tokens ahead, by rows and layers skipped, after a prompt of 96 and 64 tokens."""

    def step(n: int, tokens: int, k: int) -> float:  # one decode step of n rows, each of so many tokens
        stay, total = n_layers - k, n * tokens
        return float(np.dot(rates["sampling"], [0, 1, total, stay, total * stay, total * 160 * stay, total * k]))

    lines = []
    for n in rows:
        line = {"rows": str(n)}
        for k, acceptance in accepted.items():
            speeds = {
                m: speculated(step(n, 1, k), step(n, m + 1, 0), step(n, 1, 0), acceptance, m) for m in range(1, 9)
            }
            best = max(speeds, key=speeds.get)
            line[f"{k} skipped, {acceptance:.3f}"] = f"{speeds[best]:.2f} ({best} ahead)"
        lines.append(line)
    return lines


def on_gpu(
    weights: float, head: float, n_layers: int, kv: float, rows: int, length: int, skipped: int
) -> tuple[float, float]:
    """Seconds of sampling and of learning, by what has to be read or computed at the least, prompts left out. A weight
    has two bytes; a decode step reads weights, keys and values; learning has three times a forward pass's products."""
    stay = n_layers - skipped
    read = 2 * (stay * weights + head) + rows * (length / 2) * kv * stay
    products = 2 * (stay * weights + head) * rows
    decode = max(read / (BANDWIDTH * READ), products / (COMPUTE * USED))
    learn = 3 * 2 * (n_layers * weights + head) * rows * length / (COMPUTE * USED)
    return decode * length, learn


def gpu() -> list[dict]:
    """Shares and gains that such a card would give, estimated."""
    lines = []
    for name, model in MODELS.items():
        for rows in (64, 256, 1024):
            for length in (256, 2048):
                sample, learn = on_gpu(*model, rows, length, 0)
                line = {
                    "model": name,
                    "rows": str(rows),
                    "length": str(length),
                    "sampling": f"{sample / (sample + learn):.0%}",
                }
                for ratio in (0.1, 0.3):
                    own, _ = on_gpu(*model, rows, length, round(ratio * model[2]))
                    line[f"a step at {ratio}"] = f"{(own + learn) / (sample + learn):.2f}"
                lines.append(line)
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file that the measurements are added to")
    parser.add_argument("--read", type=Path, help="file of measurements; then none is made")
    parser.add_argument("--gpu", action="store_true", help="print the estimate for an H100")
    parser.add_argument("--accepted", nargs="*", default=[], metavar="K=A", help="acceptance with K layers skipped")
    parser.add_argument("--model", default="", help="a checkpoint (default: the embedded model)")
    parser.add_argument("--dataset", default="arith", help="of the rollouts that are checked on (default: arith)")
    parser.add_argument("--data-dir")
    parser.add_argument("--dtype", default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of those rollouts (default: 128)")
    parser.add_argument("--repeats", type=int, default=3, help="whose median is taken (default: 3)")
    a = parser.parse_args(arguments)
    try:
        if a.gpu:
            print(table(gpu()))
            return 0
        if not a.read:
            if not a.out:
                raise ValueError("neither --out nor --read is given; expected a file")
            measure(a)
        rows = [json.loads(line) for line in (a.read or a.out).read_text(encoding="utf-8").splitlines()]
        parts, n_layers = rows[0]["seconds"], rows[0]["layers"]
        rates = {part: fitted([row for row in rows if row["kind"] == "fit"], part) for part in parts}
        print("error of the prediction: median, worst\n\n" + table(errors(rows, rates)))
        print("\nseconds, predicted / measured\n\n" + table(checked(rows, rates)))
        print("\n64 completions of one length after prompts of 96 tokens\n\n" + table(shares(rates, n_layers)))
        print("\nprogress at which a nested step is worth its seconds\n\n" + table(break_even(rates, n_layers)))
        if a.accepted:
            accepted = {int(k): float(x) for k, x in (each.split("=") for each in a.accepted)}
            print("\nself-speculation, times plain sampling\n\n" + table(lossless(rates, n_layers, accepted)))
    except (ValueError, OSError) as error:
        return report_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
