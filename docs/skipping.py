"""Which nested models are worth sampling from: acceptance, accuracy and speed of every way to choose and fill the gaps.

    python -m docs.skipping --model M --dataset svamp --data-dir DATA --out FOLDER    # half an hour

M is a checkpoint after a warm-up. At skip ratios 0.1, 0.2 and 0.3, ten masks, each on a tenth of the test split, so
that a mean over masks is one over all its problems. A line a row goes to FOLDER/skipping.jsonl:

    acceptance   mean of min(1, ρ) over the tokens of the nested model's own completions, as train.py reports it
    accuracy     share of those completions that is correct
    speed        tokens/s over those with nothing skipped, 64 rows of 32 tokens, no completion ends early
"""

import argparse
import functools
import json
import statistics
import sys
from math import comb
from pathlib import Path

import torch

import train
from bench import seconds
from evaluate import accuracy, score
from losses import diagnostics, log_ratio
from rollout import completion_logprobs, generate
from skip import sample_mask, valid_layers

RATIOS, MASKS = (0.1, 0.2, 0.3), 10


def prepared(bypass: str, a: argparse.Namespace) -> train.Run:
    """A run of train.py on the checkpoint with its nested models measured, none of it trained."""
    given = {"model": a.model, "dataset": a.dataset, "data_dir": a.data_dir, "bypass": bypass, "dtype": a.dtype}
    run = train.set_up(given | {"out": str(Path(a.out) / bypass)})
    run.skip_mask(step=1)
    return run


@torch.no_grad()
def sampled(run: train.Run, problems: list, n_samples: int, skip) -> dict[str, float]:
    """Figures of some completions of each problem under a mask."""
    prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
    rollout = generate(run.model, prompts, n_samples, 128, run.tokenizer.eos_ids, skip=skip)
    full = torch.zeros_like(rollout.logprobs)
    for rows in torch.arange(len(full)).split(4 * n_samples):
        chosen = [rollout.prompts[row] for row in rows.tolist()]
        full[rows], _ = completion_logprobs(run.model, chosen, rollout.tokens[rows], rollout.mask[rows])
    return {
        "accuracy": accuracy(score(run.tokenizer, problems, rollout))[0],
        "acceptance": diagnostics(log_ratio(full, rollout.logprobs, rollout.mask), rollout.mask)["acceptance"],
        "length": rollout.mask.sum().item() / len(full),
    }


def speed(run: train.Run, prompts: list, skips: list) -> float:
    """Tokens/s under masks over tokens/s under none, in turn."""

    def sample(skip):
        return seconds(lambda: generate(run.model, prompts, 8, 32, [], skip=skip))

    sample(None)
    return statistics.median(sample(None) / sample(skip) for skip in skips)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--model", "--dataset", "--data-dir", "--out"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--samples", type=int, default=4, help="completions of a problem")
    parser.add_argument("--ways", nargs="*", help="rows to compute; none: all")
    a = parser.parse_args()
    Path(a.out).mkdir(parents=True, exist_ok=True)
    ways = {  # bypass, and the valid layers of L for k skipped ones; None: as measured
        "full": ("linear", lambda L, k: []),
        "random": ("identity", lambda L, k: list(range(L))),
        "border": ("identity", lambda L, k: valid_layers(L, 1)),
        "measured": ("identity", None),
        "measured, mean": ("mean", None),
        "measured, linear": ("linear", None),
    }
    runs = functools.cache(lambda bypass: prepared(bypass, a))

    def write(**row) -> None:
        print(row, flush=True)
        with (Path(a.out) / "skipping.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    for name in a.ways or ways:
        bypass, given = ways[name]
        run = runs(bypass)
        problems, L = run.tests["test"], run.model.config.num_hidden_layers
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems[:8]]
        for ratio in (0,) if name == "full" else RATIOS:
            k, generator = round(ratio * L), torch.Generator().manual_seed(0)
            valid = given(L, k) if given else run.nested.layers.valid_layers(k)
            skips = [sample_mask(L, ratio, valid, generator) for _ in range(MASKS)]
            figures = [sampled(run, problems[i::MASKS], a.samples, skip) for i, skip in enumerate(skips)]
            row = {"way": name, "ratio": ratio, "masks": comb(len(valid), k)}
            for key in ("acceptance", "accuracy", "length"):
                each = [f[key] for f in figures]
                row |= {key: statistics.mean(each), f"{key}_min": min(each)}
            write(**row, speed=speed(run, prompts, skips[:3]))
    rows = [json.loads(line) for line in (Path(a.out) / "skipping.jsonl").read_text(encoding="utf-8").splitlines()]
    print(table(rows))
    draw(rows, Path(a.out) / "skipping.svg")
    return 0


def table(rows: list[dict]) -> str:
    lines = ["| layers and bypass | skip ratio | masks | acceptance | least | accuracy | least | length | tokens/s |"]
    lines += ["|---" * 9 + "|"]
    for r in rows:
        lines.append(
            f"| {r['way']} | {r['ratio']} | {r['masks']:,} | {r['acceptance']:.3f} | {r['acceptance_min']:.3f} | "
            f"{r['accuracy']:.1%} | {r['accuracy_min']:.1%} | {r['length']:.0f} | {r['speed']:.2f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """Acceptance and accuracy against the skip ratio, mean and least of the masks."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "skipping"  # the same figure is the same file
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, key in zip(axes, ("acceptance", "accuracy"), strict=True):
        for way in dict.fromkeys(r["way"] for r in rows if r["ratio"]):
            ratios, means, least = zip(
                *((r["ratio"], r[key], r[f"{key}_min"]) for r in rows if r["way"] in (way, "full")), strict=True
            )
            [line] = axis.plot(ratios, means, marker="o", label=way)
            if key == "acceptance":
                axis.plot(ratios, least, linestyle=":", color=line.get_color())
        axis.set_xlabel("skip ratio")
        axis.set_ylabel(f"{key} of the nested model" + "\n(dotted: of the worst mask)" * (key == "acceptance"))
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
