"""Which nested models are worth sampling from: acceptance, accuracy and speed of every way to choose and fill the gaps.

    python -m docs.nested --model M --dropout D --dataset svamp --data-dir DATA --out FOLDER    # half an hour

M is a checkpoint after a warm-up, D one after the same warm-up with --layer-dropout. At skip ratios 0.1, 0.2 and 0.3,
ten masks each, one sample of each of the first problems of the test split. A line a row goes to FOLDER/nested.jsonl:

    acceptance   mean of min(1, ρ) over the tokens of the nested model's own completions, as train.py reports it
    accuracy     mean reward of those completions
    speed        tokens/s over those with nothing skipped, 64 rows of 32 tokens, no completion ends early
"""

import argparse
import json
import statistics
import sys
from math import comb
from pathlib import Path

import torch

import train
from bench import seconds
from evaluate import score
from losses import diagnostics, log_ratio
from rollout import completion_logprobs, generate
from skip import sample_mask, valid_layers

RATIOS, MASKS = (0.1, 0.2, 0.3), 10


def prepared(folder: str, bypass: str, a: argparse.Namespace) -> train.Run:
    """A run of train.py on that checkpoint with its nested models measured, none of it trained."""
    given = {"model": folder, "dataset": a.dataset, "data_dir": a.data_dir, "bypass": bypass, "dtype": a.dtype}
    run = train.set_up(given | {"out": str(Path(a.out) / f"{Path(folder).parent.name}-{bypass}")})
    train.measure_nested(run)
    return run


def sampled(run: train.Run, problems: list, prompts: list, skip, seed: int) -> dict[str, float]:
    """Figures of one completion of each problem under a mask."""
    rollout = generate(run.model, prompts, 1, 128, run.tokenizer.eos_ids, skip=skip, seed=seed)
    records = score(run.tokenizer, problems, rollout)
    with torch.no_grad():
        full = torch.zeros_like(rollout.logprobs)
        for rows in torch.arange(len(prompts)).split(16):
            chosen = [prompts[row] for row in rows.tolist()]
            full[rows], _ = completion_logprobs(run.model, chosen, rollout.tokens[rows], rollout.mask[rows])
    return {
        "accuracy": statistics.mean(samples[0]["reward"] for samples in records),
        "acceptance": diagnostics(log_ratio(full, rollout.logprobs, rollout.mask), rollout.mask)["acceptance"],
        "length": rollout.mask.sum().item() / len(prompts),
    }


def speed(run: train.Run, prompts: list, skips: list) -> float:
    """Tokens/s under masks over tokens/s under none, in turn."""

    def sample(skip):
        return seconds(lambda: generate(run.model, prompts[:8], 8, 32, [], skip=skip))

    sample(None)
    return statistics.median(sample(None) / sample(skip) for skip in skips)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--model", "--dropout", "--dataset", "--data-dir", "--out"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--problems", type=int, default=64)
    a = parser.parse_args()
    Path(a.out).mkdir(parents=True, exist_ok=True)
    identity, mean, dropout = (
        prepared(folder, bypass, a)
        for folder, bypass in ((a.model, "identity"), (a.model, "mean"), (a.dropout, "mean"))
    )
    L = identity.model.config.num_hidden_layers
    ways = {
        "random": (identity, lambda k: list(range(L))),
        "border": (identity, lambda k: valid_layers(L, 1)),
        "measured": (identity, identity.measured.valid_layers),
        "measured, mean": (mean, mean.measured.valid_layers),
        "measured, mean, dropout": (dropout, dropout.measured.valid_layers),
    }
    problems = identity.tests["test"][: a.problems]
    prompts = [identity.tokenizer.encode_prompt(problem.question) for problem in problems]

    def write(**row) -> None:
        print(row, flush=True)
        with (Path(a.out) / "nested.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    for name, run in (("full", mean), ("full, dropout", dropout)):
        figures = [sampled(run, problems, prompts, None, seed * 1000) for seed in range(MASKS)]
        write(way=name, ratio=0, accuracy=statistics.mean(f["accuracy"] for f in figures), length=figures[0]["length"])
    for name, (run, valid) in reversed(ways.items()):
        for ratio in RATIOS:
            k, generator = round(ratio * L), torch.Generator().manual_seed(0)
            skips = [sample_mask(L, ratio, valid(k), generator) for _ in range(MASKS)]
            figures = [sampled(run, problems, prompts, skip, seed * 1000) for seed, skip in enumerate(skips)]
            row = {"way": name, "ratio": ratio, "valid": len(valid(k)), "masks": comb(len(valid(k)), k)}
            for key in ("acceptance", "accuracy", "length"):
                each = [f[key] for f in figures]
                row |= {key: statistics.mean(each), f"{key}_min": min(each)}
            write(**row, speed=speed(run, prompts, skips[:3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
