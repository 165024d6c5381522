"""Which nested models are worth sampling from, and which figure tells: ways to choose layers, and to read past them.

    python -m docs.skipping --model M --dataset svamp --data-dir DATA --out FOLDER    # M: a checkpoint after a warm-up
    python -m docs.skipping --dtype float32 --out FOLDER                              # the embedded model, on arith
    python -m docs.skipping --read FOLDER FOLDER --out FOLDER    # skipping.svg and rank correlations, of what is there

At each skip ratio some masks, each on its share of the problems, so that a mean over masks is one over all of them. A
line a row goes to FOLDER/skipping.jsonl:

    reward       share of the nested model's completions that is correct; of_full: divided by the full model's
    acceptance, acceptance_p5, sequence_acceptance, ess    as train.py reports them (losses.diagnostics)
    aim          of the default gradient of BATCH problems with 8 such completions each, a mask a batch, against
                 batches of the full model; docs/estimators.py says what it is. None if not asked for (--aim)
    speed        tokens/s over those with nothing skipped, 64 rows of 32 tokens, no completion ends early
"""

import argparse
import functools
import json
import statistics
import sys
from math import comb
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import train
from bench import seconds
from docs.comparison import interval
from docs.estimators import gradients
from evaluate import score
from losses import diagnostics, log_ratio
from rollout import Rollout, completion_logprobs, generate
from skip import sample_mask, valid_layers

SIGNS = ("acceptance", "acceptance_p5", "sequence_acceptance", "ess")
WAYS = {  # bypass, who reads the prompts, and the valid layers of L for k skipped ones, None: as measured
    "random": ("identity", "nested", lambda L, k: list(range(L))),
    "border": ("identity", "nested", lambda L, k: valid_layers(L, 1)),
    "measured": ("identity", "nested", None),
    "measured, mean": ("mean", "nested", None),
    "measured, linear": ("linear", "nested", None),
    "measured, linear, full": ("linear", "full", None),
}
DEFAULT = {"is": ({"kind": "is"}, "grpo", "tokens")}
TRUTH = {"on-policy": ({"kind": "on-policy"}, "rloo", "completions")}
BATCH = 16


def prepared(bypass: str, prefill: str, a: argparse.Namespace) -> train.Run:
    """A run of train.py on the checkpoint with its nested models measured, none of it trained."""
    given = {"model": a.model, "dataset": a.dataset, "data_dir": a.data_dir, "dtype": a.dtype}
    run = train.set_up(given | {"bypass": bypass, "prefill": prefill, "out": str(a.out / f"{bypass}-{prefill}")})
    run.skip_mask(step=1)
    return run


def sampled(run: train.Run, problems: list, n_samples: int, seed, **how) -> tuple[Rollout, list[list[float]]]:
    """Completions of each problem, and their rewards."""
    prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
    n = run.settings.max_new_tokens
    rollout = generate(run.model, prompts, n_samples, n, run.tokenizer.eos_ids, seed=seed, **how)
    return rollout, [[record["reward"] for record in group] for group in score(run.tokenizer, problems, rollout)]


@torch.no_grad()
def log_ratios(run: train.Run, rollout: Rollout, rows: int = 16) -> list[torch.Tensor]:
    """log ρ of each completion's tokens."""
    full = torch.zeros_like(rollout.logprobs)
    for part in torch.arange(len(full)).split(rows):
        prompts = [rollout.prompts[row] for row in part.tolist()]
        full[part], _ = completion_logprobs(run.model, prompts, rollout.tokens[part], rollout.mask[part])
    ratios = log_ratio(full, rollout.logprobs, rollout.mask)
    return [row[kept] for row, kept in zip(ratios, rollout.mask, strict=True)]


def speed(run: train.Run, prompts: list, skips: list, full_prompt: bool) -> float:
    """Tokens/s under masks over tokens/s under none, in turn."""

    def sample(skip):
        return seconds(lambda: generate(run.model, prompts, 8, 32, [], skip=skip, full_prompt=full_prompt))

    sample(None)
    return statistics.median(sample(None) / sample(skip) for skip in skips)


class Aim:
    """The aim of a nested model's batches, against 4n of the full model; the model and its problems stay the same."""

    def __init__(self, run: train.Run, n: int):
        self.problems = run.train[:BATCH]
        first, second = (
            sum(self.gradient(run, seed, TRUTH) for seed in range(start, start + 2 * n)) / (2 * n)
            for start in (10**6, 2 * 10**6)
        )
        self.truth, self.length = (first + second) / 2, (first @ second).sqrt().item()

    def gradient(self, run: train.Run, seed: int, estimator: dict, **how) -> torch.Tensor:
        rollout, rewards = sampled(run, self.problems, 8, BATCH * seed, **how)
        return gradients(run.model, rollout, torch.tensor(rewards), estimator)[0][0]

    def __call__(self, run: train.Run, skips: list, **how) -> float:
        across, square = 0.0, 0.0
        for i, skip in enumerate(skips):
            g = self.gradient(run, i, DEFAULT, skip=skip, **how)
            across, square = across + (g @ self.truth).item(), square + (g @ g).item()
        return across / len(skips) / (self.length * (square / len(skips)) ** 0.5)


def measured(a: argparse.Namespace) -> None:
    """Writes the rows that are asked for."""
    runs, rows, aim = functools.cache(lambda bypass, prefill: prepared(bypass, prefill, a)), [], None

    def write(**row) -> None:
        rows.append(row)
        print({key: value for key, value in row.items() if key != "rewards"}, flush=True)
        with (a.out / "skipping.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    for name in a.ways:
        bypass, prefill, given = WAYS[name]
        run = runs(bypass, prefill)
        problems, L = run.tests["test"][: a.problems], run.model.config.num_hidden_layers
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems[:8]]
        if not rows:
            rollout, rewards = sampled(run, problems, a.samples, seed=0)
            length = rollout.mask.sum().item() / len(rollout.prompts)
            write(way="full", ratio=0, reward=np.mean(rewards), of_full=1.0, rewards=rewards, length=length)
            aim = Aim(run, a.aim) if a.aim else None
        for ratio in a.ratios:
            k, generator = round(ratio * L), torch.Generator().manual_seed(0)
            valid = given(L, k) if given else run.nested.layers.valid_layers(k)
            skips = [sample_mask(L, ratio, valid, generator) for _ in range(a.masks)]
            how = {"full_prompt": prefill == "full", "temperature": a.temperature}
            rewards, log_rho = [None] * len(problems), []
            for i, skip in enumerate(skips):
                some = range(i, len(problems), a.masks)
                rollout, rewards[i :: a.masks] = sampled(
                    run, [problems[p] for p in some], a.samples, list(some), skip=skip, **how
                )
                log_rho += log_ratios(run, rollout)
            lengths = torch.tensor([len(row) for row in log_rho])
            mask = torch.arange(lengths.max()) < lengths[:, None]
            figures = diagnostics(pad_sequence(log_rho, batch_first=True), mask)
            write(
                **{"way": name, "ratio": ratio, "masks": comb(len(valid), k), "temperature": a.temperature},
                **{"reward": np.mean(rewards), "of_full": np.mean(rewards) / rows[0]["reward"], "rewards": rewards},
                **{key: figures[key] for key in SIGNS} | {"length": lengths.float().mean().item()},
                aim=aim and aim(run, skips[: a.aim], **how),
                speed=speed(run, prompts, skips[:3], prefill == "full") if a.speed else None,
            )


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipping.jsonl").read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict]) -> str:
    """A row a line; where the full model read the prompts, the gain in reward, with a paired 95 % interval."""
    columns = ("length", "reward", "of_full", "aim", *SIGNS, "speed")
    lines = [f"| layers, bypass, prompt | ratio | {' | '.join(columns)} | gain |", "|---" * (len(columns) + 3) + "|"]
    twins = {(row["way"], row["ratio"], row.get("temperature")): row for row in rows}
    for row in rows:
        cells = [f"{row[key]:.3g}" if row.get(key) is not None else "–" for key in columns]
        twin = twins.get((row["way"].removesuffix(", full"), row["ratio"], row.get("temperature")))
        gain = "–"
        if twin not in (None, row):
            difference = np.mean(row["rewards"], axis=1) - np.mean(twin["rewards"], axis=1)
            low, high = interval(difference)
            gain = f"{100 * difference.mean():+.1f} ({100 * low:+.1f} … {100 * high:+.1f})"
        lines.append(f"| {row['way']} | {row['ratio']} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)


def with_figure(rows: list[dict], key: str) -> list[dict]:
    """Those of nested models of which the figure was measured."""
    return [row for row in rows if row["ratio"] and row.get(key) is not None]


def correlations(rows: list[dict]) -> str:
    """Spearman's rank correlation of every sign with what it should tell."""
    lines = []
    for key in ("of_full", "aim"):
        known = with_figure(rows, key)
        values = {k: np.array([row[k] for row in known]) for k in (key, *SIGNS)}
        ranks = {k: [(x < value).sum() + (x == value).sum() / 2 for value in x] for k, x in values.items()}
        cells = [f"{sign} {np.corrcoef(ranks[sign], ranks[key])[0, 1]:.2f}" for sign in SIGNS] if known else ["–"]
        lines.append(f"{key}, {len(known)} rows: {', '.join(cells)}")
    return "\n".join(lines)


def draw(worlds: dict[str, list[dict]], path: Path) -> None:
    """Share of the full model's reward, and aim, against each sign."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "skipping"  # the same figure is the same file
    figure, axes = plt.subplots(2, len(SIGNS), figsize=(13, 6), sharey="row", layout="constrained")
    for line, (key, label) in zip(axes, (("of_full", "reward, of the full model's"), ("aim", "aim")), strict=True):
        for axis, sign in zip(line, SIGNS, strict=True):
            for name, rows in worlds.items():
                known = with_figure(rows, key)
                axis.plot([row[sign] for row in known], [row[key] for row in known], "o", label=name)
            axis.set(xlabel=sign.replace("_", " "), xlim=(0, 1), ylim=(0, 1))
        line[0].set_ylabel(label)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--read", nargs="*", type=Path, default=[], help="folders with rows; then none is computed")
    parser.add_argument("--model", default="", help="a checkpoint; none: the embedded model")
    parser.add_argument("--dataset", default="arith")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--problems", type=int, default=300, help="of the test split")
    parser.add_argument("--samples", type=int, default=4, help="completions of a problem")
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--masks", type=int, default=10, help="masks a row")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the nested model alone (default: 1)")
    parser.add_argument("--aim", type=int, default=0, help="batches a row whose aim is measured (default: none)")
    parser.add_argument("--speed", action="store_true", help="measure the speed too")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS, help="rows to compute (default: all)")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if not a.read:
        measured(a)
    worlds = {folder.name: read(folder) for folder in a.read or [a.out]}
    for name, rows in worlds.items():
        print(f"\n{name}\n\n{table(rows)}\n\n{correlations(rows)}")
    print(f"\nall\n\n{correlations([row for rows in worlds.values() for row in rows])}")
    draw(worlds, a.out / "skipping.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
