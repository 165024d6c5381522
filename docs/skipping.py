"""How far one may skip: what nested models still get right, how far they are from the full one, and which figure tells.

    python -m docs.skipping --model M --dataset svamp --data-dir DATA --out NAME.jsonl    # M: a checkpoint; adds rows
    python -m docs.skipping --read docs/runs/skipping/*.jsonl --out docs/skipping.svg     # tables, and the figure

The layers are measured once, with a linear bypass. Every bypass has the same masks, each on its share of the problems,
so that a mean over masks is one over all of them. The full model reads the prompts. A line a row:

    reward       share of the completions that is correct; of_full: divided by the full model's
    rewards      the same of each problem
    acceptance, acceptance_p5, sequence_acceptance, ess    as train.py reports them (losses.diagnostics)
    aim          of the default gradient of BATCH problems with 8 such completions each, a mask a batch, against
                 batches of the full model; docs/estimators.py says what it is. None if not asked for (--aim)
"""

import argparse
import json
import sys
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import data
from docs import figures
from docs.comparison import points
from docs.estimators import gradients
from evaluate import grade
from losses import diagnostics, log_ratio
from nested import NestedModels
from rollout import Rollout, completion_logprobs, generate
from skip import sample_mask
from support.log import report_error
from support.pictures import COLOURS, MARKERS
from support.pretrained import load_model
from support.settings import Settings

SIGNS = ("acceptance", "acceptance_p5", "sequence_acceptance", "ess")
BYPASSES = ("linear", "mean", "identity")
DEFAULT = {"is-sequence": ({"kind": "is-sequence"}, "grpo", "tokens")}
TRUTH = {"on-policy": ({"kind": "on-policy"}, "rloo", "completions")}
BATCH = 16


class Models:
    """A checkpoint with its nested models measured, and what it samples. Nothing is trained."""

    def __init__(self, a: argparse.Namespace):
        self.settings = Settings(
            model=a.model, dtype=a.dtype, max_new_tokens=a.max_new_tokens, temperature=a.temperature
        )
        self.model, self.tokenizer = load_model(a.model, a.dtype, self.settings.device)
        self.train, self.test = (data.load(a.dataset, split, a.data_dir or None) for split in ("train", "test"))
        self.n_layers = self.model.config.num_hidden_layers
        self.max_new_tokens, self.temperature = a.max_new_tokens, a.temperature
        self.nested = self.measured("linear", "measured")
        self.bypass = self.nested.bypass

    def measured(self, bypass: str, valid_layers: str) -> NestedModels:
        cached = {} if bypass == "linear" else {"model": ""}  # what a run measures is kept beside the model, others not
        s = replace(self.settings, bypass=bypass, valid_layers=valid_layers, **cached)
        nested = NestedModels(self.model, self.tokenizer, self.train, s)
        if nested.is_due(1):
            nested.measure(1)
        return nested

    def give_bypass(self, kind: str) -> None:
        """All kinds are fitted on the same completions."""
        self.bypass = self.nested.bypass if kind == "linear" else self.measured(kind, "border:0").bypass

    def sample(
        self, problems: list, n_samples: int, seeds: list[int], skip=None, rows: int = 64
    ) -> tuple[list[Rollout], list[list[float]]]:
        """Completions of each problem, so many at a time, and their rewards."""
        rollouts, rewards, size = [], [], max(1, rows // n_samples)
        for start in range(0, len(problems), size):
            some = problems[start : start + size]
            prompts = [self.tokenizer.encode_prompt(problem.question) for problem in some]
            rollouts.append(generate(
                self.model, prompts, n_samples, self.max_new_tokens, self.tokenizer.eos_ids, self.temperature,
                skip=skip, seed=seeds[start : start + size], bypass=self.bypass, full_prefill=True,
            ))  # fmt: skip
            records = grade(self.tokenizer, some, rollouts[-1])
            rewards += [[record["reward"] for record in group] for group in records]
        return rollouts, rewards

    @torch.no_grad()
    def log_ratios(self, rollouts: list[Rollout], rows: int = 16) -> list[torch.Tensor]:
        """log ρ of each completion's tokens."""
        found = []
        for rollout in rollouts:
            full = torch.zeros_like(rollout.logprobs)
            for part in torch.arange(len(full)).split(rows):
                prompts = [rollout.prompts[row] for row in part.tolist()]
                completions = rollout.tokens[part], rollout.mask[part]
                full[part], _ = completion_logprobs(self.model, prompts, *completions, self.temperature)
            ratios = log_ratio(full, rollout.logprobs, rollout.mask)
            found += [row[kept] for row, kept in zip(ratios, rollout.mask, strict=True)]
        return found

    def figures(self, rollouts: list[Rollout], rewards: list[list[float]]) -> dict:
        log_rho = self.log_ratios(rollouts)
        lengths = torch.tensor([len(row) for row in log_rho])
        found = diagnostics(pad_sequence(log_rho, batch_first=True), torch.arange(lengths.max()) < lengths[:, None])
        means = [round(float(np.mean(each)), 4) for each in rewards]
        ended = torch.cat([rollout.ended for rollout in rollouts]).float().mean().item()
        figures = {"reward": float(np.mean(means)), "length": lengths.float().mean().item(), "ended": ended}
        return figures | {key: found[key] for key in SIGNS} | {"rewards": means}


class Aim:
    """The aim of a nested model's batches, against 4n of the full model's; the problems stay the same."""

    def __init__(self, models: Models, n: int):
        self.models, self.problems = models, models.train[:BATCH]
        first, second = (
            sum(self.gradient(seed, TRUTH) for seed in range(start, start + 2 * n)) / (2 * n)
            for start in (10**6, 2 * 10**6)
        )
        self.truth, self.length = (first + second) / 2, (first @ second).sqrt().item()

    def gradient(self, seed: int, estimator: dict, skip=None) -> torch.Tensor:
        seeds = [BATCH * seed + i for i in range(BATCH)]
        [rollout], rewards = self.models.sample(self.problems, 8, seeds, skip, rows=8 * BATCH)
        return gradients(self.models.model, rollout, torch.tensor(rewards), estimator)[0][0]

    def __call__(self, skips: list) -> float:
        across, square = 0.0, 0.0
        for i, skip in enumerate(skips):
            g = self.gradient(i, DEFAULT, skip)
            across, square = across + (g @ self.truth).item(), square + (g @ g).item()
        return across / len(skips) / (self.length * (square / len(skips)) ** 0.5)


def measured(a: argparse.Namespace) -> None:
    """Writes the rows that are asked for and not there yet."""
    rows = read(a.out) if a.out.exists() else []
    asked = {"samples": a.samples, "temperature": a.temperature}
    if any(row.get(key, value) != value for row in rows for key, value in asked.items()):
        raise ValueError(f"{a.out} has rows of other samples or another temperature than {asked}; give another --out")
    models = Models(a)
    problems, L = models.test[: a.problems], models.n_layers
    aim = Aim(models, a.aim) if a.aim else None

    def write(rollouts: list[Rollout], rewards: list[list[float]], **row) -> None:
        found = models.figures(rollouts, rewards)
        full = next((each["reward"] for each in rows if each["bypass"] == "full"), found["reward"])
        row |= {"layers": L} | asked
        row |= {"of_full": found["reward"] / full if full else None} | found
        rows.append(row)
        print({key: value for key, value in row.items() if key != "rewards"}, flush=True)
        with a.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    done = {(row["bypass"], row["ratio"]) for row in rows}
    if ("full", 0) not in done:
        write(*models.sample(problems, a.samples, list(range(len(problems)))), bypass="full", ratio=0, skipped=0)
    for bypass in a.bypasses:
        todo = [ratio for ratio in a.ratios if (bypass, ratio) not in done]
        if todo:
            models.give_bypass(bypass)
        for ratio in todo:
            k, generator = round(ratio * L), torch.Generator().manual_seed(0)
            valid = models.nested.measured.order.valid_layers(k)
            skips = [sample_mask(L, k / L, valid, generator) for _ in range(a.masks)]
            rollouts, rewards = [], [None] * len(problems)
            for i, skip in enumerate(skips):
                some = list(range(i, len(problems), a.masks))
                new, rewards[i :: a.masks] = models.sample([problems[p] for p in some], a.samples, some, skip)
                rollouts += new
            known = {"aim": aim and aim(skips[: a.aim]), "masks": comb(len(valid), k)}
            write(rollouts, rewards, bypass=bypass, ratio=ratio, skipped=k, **known)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict]) -> str:
    """A row a line, its loss of reward in points with a 95 % interval over problems."""
    columns = ("length", "reward", "of_full", "aim", *SIGNS)
    lines = [f"| bypass | skipped | {' | '.join(columns)} | against full |", "|---" * (len(columns) + 3) + "|"]
    full = next(row for row in rows if row["bypass"] == "full")
    for row in rows:
        cells = [f"{row[key]:.3g}" if row.get(key) is not None else "–" for key in columns]
        difference = np.array(row["rewards"]) - np.array(full["rewards"])
        lost = points(difference[None]) if row is not full else ""
        lines.append(f"| {row['bypass']} | {row['skipped']} of {row['layers']} | {' | '.join(cells)} | {lost} |")
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
    """Share of the reward that is kept, and sequence acceptance, by the share of the layers that is skipped: a line a
    model and data set. Solid with a linear bypass, dotted with the identity."""
    figure, panels = figures.panels(2, width=6.0, height=4.0)
    for axes, key in zip(panels, ("of_full", "sequence_acceptance"), strict=True):
        ends = []
        for n, (name, rows) in enumerate(worlds.items()):
            full, colour = next(row for row in rows if row["bypass"] == "full"), COLOURS[n % len(COLOURS)]
            for bypass, dash in (("linear", "-"), ("identity", ":")):
                known = [row for row in with_figure(rows, key) if row["bypass"] == bypass]
                points = sorted((row["skipped"] / row["layers"], row[key]) for row in [full, *known])
                if known:
                    axes.plot(*zip(*points, strict=True), dash, marker=MARKERS[n % len(MARKERS)], color=colour)
                if known and bypass == "linear":
                    ends.append((*points[-1], f"{name}, {full['length']:.0f} tokens", colour))
        axes.set(xlabel="share of the layers skipped", ylim=(0, None))
        axes.set_xlim(-0.01, axes.get_xlim()[1] * 1.6)
        figures.label_ends(axes, ends)
    panels[0].set_title("Reward, as a share of the full model's")
    panels[1].set_title("Sequence acceptance")
    title = "A linear bypass (solid) keeps what the identity (dotted) loses, less so the longer the completions"
    figure.suptitle(title, fontsize=11)
    figures.save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="file of rows, or with --read of the figure")
    parser.add_argument("--read", nargs="*", type=Path, default=[], help="files of rows; then none is computed")
    parser.add_argument("--model", default="", help="a checkpoint (default: the embedded model)")
    parser.add_argument("--dataset", default="arith")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--problems", type=int, default=300, help="of the test split (default: 300)")
    parser.add_argument("--samples", type=int, default=4, help="completions of a problem (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0, help="(default: 1)")
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--bypasses", nargs="*", default=BYPASSES, choices=BYPASSES)
    parser.add_argument("--masks", type=int, default=10, help="masks a row (default: 10)")
    parser.add_argument("--aim", type=int, default=0, help="batches a row whose aim is measured (default: none)")
    a = parser.parse_args()
    if a.aim and a.temperature != 1:
        parser.error("--aim is measured at a temperature of 1")
    try:
        if not a.read:
            measured(a)
        worlds = {path.stem.replace("_", " "): read(path) for path in a.read or [a.out]}
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return report_error(error)
    for name, rows in worlds.items():
        print(f"\n{name}\n\n{table(rows)}\n\n{correlations(rows)}")
    print(f"\nall\n\n{correlations([row for rows in worlds.values() for row in rows])}")
    if a.read:
        draw(worlds, a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
