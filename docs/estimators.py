"""Which estimator to use: bias, direction and noise of each, as the nested model moves away from the full one.

    python -m docs.estimators --out FOLDER      # two hours on one core: three tables, and estimators.svg

Three times the same question. In a world that can be counted out (random decoders of eight layers, three tokens, at
most five of them) every expectation is a finite sum: medians over models and masks. On the embedded model they come
from sampled batches, held against a long run of samples from the full model: of arith, whose completions have 15 tokens
in the mean, and of sums of six to ten steps, which have 90; a short warm-up teaches the model to write those. g is the
estimate of one batch of BATCH completions, g* = ∇ E_π[R]:

    bias      ‖E g − g*‖ / ‖g*‖
    cosine    of E g and g*: the part of the bias that no step size undoes
    noise     E‖g − E g‖² / ‖g*‖²
    aim       E[g]·g* / (‖g*‖ √E‖g‖²): bias and noise in one. Its square is the share of an exact gradient's progress
              that a step along g makes to second order, with the best step size for each
"""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import draw_problems
from docs import figures
from evaluate import grade
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss
from model import Config, Decoder
from rollout import Rollout, completion_logprobs, generate
from run import Run, set_up
from skip import sample_mask
from support.batches import pad_right
from train import main as train_main

KINDS = {
    "E4 on-policy": {"kind": "on-policy"},
    "E5 IS, sequence": {"kind": "is-sequence", "cap": None},
    "E5 IS, sequence, C = 2": {"kind": "is-sequence", "cap": 2.0},
    "E6 IS, token": {"kind": "is", "cap": None},
    "E6 IS, token, C = 2": {"kind": "is", "cap": 2.0},
    "E7 Retrace, λ = 1": {"kind": "retrace"},
    "E7 Retrace, λ = 0.9": {"kind": "retrace", "lam": 0.9},
    "E8 Retrace by token": {"kind": "retrace-token"},
    "E9 IS, prefix, C = 2": {"kind": "is-prefix", "cap": 2.0},
    "E10 IS, geometric, C = 2": {"kind": "is-geometric", "cap": 2.0},
}
# Caps to choose a default by, and E11 at the levels of a token, a prefix and a completion.
KINDS |= {f"E5 IS, sequence, C = {cap:g}": {"kind": "is-sequence", "cap": cap} for cap in (1.0, 5.0)}
KINDS |= {f"E6 IS, token, C = {cap:g}": {"kind": "is", "cap": cap} for cap in (1.0, 5.0)}
KINDS |= {
    f"E11 of {name}, C = {cap:g}": {"kind": kind, "cap": cap, "bound": "mask"}
    for name, kind, cap in (("E6", "is", 2.0), ("E6", "is", 5.0), ("E9", "is-prefix", 2.0), ("E5", "is-sequence", 2.0))
}
# (weights, advantage, normaliser): every weight as T1 and T5 want it, then what train.py may put around one of them
ESTIMATORS = {name: (weights, "rloo", "completions") for name, weights in KINDS.items()}
for advantage, z in (("rloo", "tokens"), ("grpo", "completions"), ("grpo", "tokens")):
    ESTIMATORS[f"E6, C = 2, {advantage}, Z = {z}"] = (KINDS["E6 IS, token, C = 2"], advantage, z)
DRAWN = [name for name in KINDS if ("C = 2" in name or "IS" not in name) and not ("E11" in name or "0.9" in name)]
LONG = (*DRAWN, "E5 IS, sequence", "E6 IS, token, C = 5", "E11 of E6, C = 2")  # a backward pass of long ones takes 5 s
WORLDS = ("counted out", "arith", "sums")
FIGURES = ("bias", "cosine", "noise", "aim")
BATCH = 128  # completions: 16 problems, 8 samples of each


def every_completion(horizon: int) -> list[list[int]]:
    """All completions of three tokens, of which 0 ends: those that end, then those that are cut off."""
    going, ended = [[]], []
    for _ in range(horizon):
        grown = [y + [token] for y in going for token in range(3)]
        ended += [y for y in grown if y[-1] == 0]
        going = [y for y in grown if y[-1] != 0]
    return ended + going


def counted_out(n_models: int, n_masks: int, horizon: int = 5) -> list[dict]:
    """Exact figures of a batch of one prompt, with the baseline b = E_η[R], by weight and layers skipped."""
    tokens, mask = pad_right(every_completion(horizon), "cpu")
    N, L = len(tokens), 8
    config = Config("llama", 3, 16, 24, L, 2, 1, 8, rms_norm_eps=1e-5, max_position_embeddings=16)
    rows = []
    for seed in tqdm(range(n_models), desc="random models"):
        generator = torch.Generator().manual_seed(seed)
        model = Decoder(config).double()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25, generator=generator)
        rewards = (torch.rand(N, generator=generator) < 0.3).double()
        target, _ = completion_logprobs(model, [[1, 2]] * N, tokens, mask)
        parameters = list(model.parameters())
        scores = torch.zeros(*tokens.shape, sum(p.numel() for p in parameters), dtype=torch.float64)
        for row, t in mask.nonzero().tolist():
            parts = torch.autograd.grad(target[row, t], parameters, retain_graph=True)
            scores[row, t] = torch.cat([part.flatten() for part in parts])  # ∇ log π(y_t)
        exact = (target.detach().sum(dim=1).exp() * rewards) @ scores.sum(dim=1)
        for skipped in (1, 2, 3, 4, 5):
            for _ in range(n_masks):
                skip = sample_mask(L, skipped / L, list(range(L)), generator)
                with torch.no_grad():
                    behaviour, _ = completion_logprobs(model, [[1, 2]] * N, tokens, mask, skip=skip)
                eta = behaviour.sum(dim=1).exp()  # (N,)
                log_rho = log_ratio(target, behaviour, mask)
                acceptance = eta @ log_rho.clamp(max=0).sum(dim=1).exp()
                for name, weights in KINDS.items():
                    w = gradient_weights(log_ratio=log_rho, mask=mask, **weights)
                    g = torch.einsum("nt,ntp->np", w * (rewards - eta @ rewards)[:, None], scores)  # of each completion
                    mean, own = eta @ g, exact.norm()
                    variance = eta @ (g - mean).square().sum(dim=1) / BATCH
                    figures = {
                        "bias": (mean - exact).norm() / own,
                        "cosine": mean @ exact / (mean.norm() * own),
                        "noise": variance / own**2,
                        "aim": mean @ exact / (own * (mean.square().sum() + variance).sqrt()),
                    }
                    rows.append({"name": name, "at": skipped, "acceptance": acceptance.item()})
                    rows[-1] |= {key: value.item() for key, value in figures.items()}
    return medians(rows)


def gradients(
    model: Decoder, rollout: Rollout, rewards: Tensor, estimators: dict, rows: int = 16
) -> tuple[Tensor, float]:
    """The ascent direction of the batch by each, (estimators, weights of the model), from one forward pass for all; and
    the batch's sequence acceptance."""
    total = torch.zeros(len(estimators), sum(p.numel() for p in model.parameters()))
    log_rhos = []
    for start in range(0, len(rollout.prompts), rows):
        part = slice(start, start + rows)
        mask = rollout.mask[part]
        logprobs, _ = completion_logprobs(model, rollout.prompts[part], rollout.tokens[part], mask)
        log_rho = log_ratio(logprobs, rollout.logprobs[part], mask)
        log_rhos.append(log_rho)
        for i, (weights, advantage, z) in enumerate(estimators.values()):
            w = gradient_weights(log_ratio=log_rho, mask=mask, **weights)
            advantages = group_advantages(rewards, advantage).flatten()[part]
            loss = policy_loss(logprobs, w, advantages, mask, normaliser(rollout.mask, z))
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            total[i] -= torch.cat([g.flatten() for g in grads])
    return total, diagnostics(torch.cat(log_rhos), rollout.mask)["sequence_acceptance"]


def sums(n: int) -> list[dict]:
    """Problems of six to ten steps, each an addition or a subtraction, with worked solutions of 70 to 90 tokens, as
    records for a file of one's own."""
    rng, records = random.Random(0), []
    for _ in range(n):
        total = rng.randint(2, 60)
        told, work = [f"Start with {total}."], []
        for _ in range(rng.randint(6, 10)):
            if total > 10 and rng.random() < 0.5:
                told.append(f"Take away {(x := rng.randint(2, min(40, total - 2)))}.")
                work.append(f"{total} - {x} = {total - x}")
                total -= x
            else:
                told.append(f"Add {(x := rng.randint(2, 40))}.")
                work.append(f"{total} + {x} = {total + x}")
                total += x
        question = " ".join([*told, "How many are there?"])
        records.append({"question": question, "answer": total, "solution": ", ".join(work)})
    return records


def taught(folder: Path) -> Run:
    """A run on such sums, of the embedded model after one epoch of supervised learning on them; made once."""
    file, out, warm = folder / "sums.jsonl", folder / "warm-up", folder / "sums"
    if not warm.exists():
        file.write_text("\n".join(map(json.dumps, sums(4000))), encoding="utf-8")
        flags = "--warmup-epochs 1 --steps 0 --eval-problems 200 --dataset"
        if train_main([*flags.split(), str(file), "--out", str(out)]):
            raise SystemExit("the warm-up did not end")
        (out / "checkpoint").rename(warm)  # it is there only if it is whole
    return set_up({"model": str(warm), "dataset": str(file), "out": str(folder / "run-sums")})


def sampled(
    run: Run, kinds: dict, layers: tuple[int, ...], n_batches: int, n_reference: int, blocks: int = 6
) -> list[dict]:
    """The same figures on a run's model and problems, so many layers skipped as it would skip them, with standard
    errors."""
    run.nested.measure(step=1)  # which layers may go, and their bypass
    model, tokenizer = run.model, run.tokenizer
    problems = draw_problems(run.train, BATCH // 8, step=1, seed=0)
    prompts = [tokenizer.encode_prompt(problem.question) for problem in problems]
    L, seeds = model.config.num_hidden_layers, iter(range(0, sys.maxsize, len(problems)))

    def batches(n: int, skipped: int, n_samples: int, estimators: dict):
        masks = torch.Generator().manual_seed(skipped)
        for _ in tqdm(range(n), desc=f"{skipped} layers skipped"):
            skip = sample_mask(L, skipped / L, run.nested.measured.order.valid_layers(skipped), masks)
            rollout = generate(
                model,
                prompts,
                n_samples,
                128,
                tokenizer.eos_ids,
                skip=skip,
                seed=next(seeds),
                bypass=run.nested.bypass,
                full_prefill=True,
            )
            rewards = [[record["reward"] for record in samples] for samples in grade(tokenizer, problems, rollout)]
            yield gradients(model, rollout, torch.tensor(rewards), estimators)

    reference = torch.zeros(blocks, sum(p.numel() for p in model.parameters()))
    on_policy = {"E4 on-policy": ESTIMATORS["E4 on-policy"]}
    for i, (g, _) in enumerate(batches(n_reference, 0, 32, on_policy)):
        reference[i % blocks] += g[0] / (n_reference / blocks)
    rows = []
    for skipped in (0, *layers):
        estimators = kinds if skipped else on_policy
        means = torch.zeros(len(estimators), *reference.shape)
        acceptance, squares = [], []
        for i, (g, accepted) in enumerate(batches(n_batches, skipped, 8, estimators)):
            means[:, i % blocks] += g / (n_batches / blocks)
            squares.append(g.square().sum(dim=1))
            acceptance.append(accepted)
        for e, name in enumerate(estimators):
            both = torch.cat((means[e], reference))
            figures = compare(both @ both.T, torch.stack(squares)[:, e])
            rows.append({"name": name, "at": skipped, "acceptance": sum(acceptance) / n_batches} | figures)
    return rows


def compare(gram: Tensor, squares: Tensor) -> dict[str, float]:
    """Figures from the inner products of B block means of an estimator and B of the reference, (2B, 2B), and from each
    batch's ‖g‖². The squared norm of a mean is a product of *different* blocks, else noise would count as bias. `key ±`
    is the jackknife's standard error: the same with one block left out, for each of them."""
    B = len(gram) // 2

    def of(kept: list[int]) -> dict[str, float]:
        def apart(square: Tensor) -> Tensor:
            return (square.sum() - square.trace()) / (len(kept) * (len(kept) - 1))

        own, theirs = apart(gram[kept][:, kept]), apart(gram[B:, B:][kept][:, kept])
        across = gram[:B, B:][kept][:, kept].mean()
        batch = torch.tensor([i % B in kept for i in range(len(squares))])
        return {
            "bias": ((own - 2 * across + theirs).clamp(min=0) / theirs).sqrt().item(),
            "cosine": (across / (own * theirs).sqrt()).item(),
            "noise": ((squares[batch].mean() - own) / theirs).item(),
            "aim": (across / (theirs * squares[batch].mean()).sqrt()).item(),
        }

    figures = of(list(range(B)))
    without = [of([i for i in range(B) if i != left_out]) for left_out in range(B)]
    for key in FIGURES:
        values = torch.tensor([each[key] for each in without])
        figures[f"{key} ±"] = ((B - 1) * values.var(correction=0)).sqrt().item()
    return figures


def medians(rows: list[dict]) -> list[dict]:
    """One row for each number of skipped layers and estimator: the median of each figure."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["at"], row["name"]), []).append(row)
    keys = ("acceptance", *FIGURES)
    return [
        {"at": at, "name": name} | {key: statistics.median(row[key] for row in group) for key in keys}
        for (at, name), group in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def table(rows: list[dict]) -> str:
    """Markdown: an estimator a line, in a table for each number of skipped layers."""
    lines, at = [], None
    for row in rows:
        if row["at"] != at:
            at = row["at"]
            lines += [f"\n{at} layers skipped, sequence acceptance {row['acceptance']:.2f}\n"]
            lines += [f"| | {' | '.join(FIGURES)} |", "|---" * (1 + len(FIGURES)) + "|"]
        cells = (f"{row[key]:.2f}" + (f" ± {row[f'{key} ±']:.2f}" if f"{key} ±" in row else "") for key in FIGURES)
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figure(worlds: dict[str, list[dict]], path: Path) -> None:
    """The aim of each kind of weight against the distance of the nested model, a panel a world."""
    panels = {"arith": "15 tokens a completion", "sums": "90 tokens a completion"}
    kinds = {name: KINDS[name]["kind"] for name in DRAWN}
    known = {world: title for world, title in panels.items() if world in worlds}
    figure, axes = figures.panels(len(known), width=5.2, height=3.8, sharey=True)
    for each, (world, title) in zip(axes, known.items(), strict=True):
        ends = []
        for name, kind in kinds.items():
            points = sorted(
                (row["acceptance"], row["aim"]) for row in worlds[world] if row["name"] == name and row["at"]
            )
            if points:
                each.plot(*zip(*points, strict=True), **figures.look(kind))
                ends.append((*points[0], *figures.ESTIMATORS[kind][:2]))
        full = [row["aim"] for row in worlds[world] if not row["at"]]
        each.plot([1], full[:1], **figures.look("full"))
        each.annotate("nothing skipped", (1, full[0]), (0, 7), textcoords="offset points", ha="center", fontsize=8.5)
        each.set(title=title, xlabel="sequence acceptance, from near the full model to far", ylim=(0, 1))
        each.set_xlim(1.1, -0.35)
        each.set_xticks([1, 0.8, 0.6, 0.4, 0.2, 0])
        figures.label_ends(each, ends)
    axes[0].set_ylabel("aim of a batch's gradient")
    figure.suptitle("Correcting whole sequences aims best, as long as some are acceptable", fontsize=11)
    figures.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for estimators.svg (default: this one)")
    parser.add_argument("--models", type=int, default=10, help="random models that are counted out (default: 10)")
    parser.add_argument(
        "--batches", type=int, default=30, help="batches an estimate of the embedded model (default: 30)"
    )
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS, help="those to compute (default: all)")
    parser.add_argument("--reference", type=int, default=18, help="batches of 512 completions for g* (default: 18)")
    a = parser.parse_args(arguments)
    a.out.mkdir(parents=True, exist_ok=True)
    long = {name: ESTIMATORS[name] for name in LONG}
    calls = {
        "counted out": lambda: counted_out(a.models, n_masks=10),
        "arith": lambda: sampled(
            set_up({"out": str(a.out / "run-arith")}), ESTIMATORS, (1, 2, 4), a.batches, a.reference
        ),
        "sums": lambda: sampled(taught(a.out), long, (2, 4), a.batches, a.reference),
    }
    for title in a.worlds:
        (a.out / f"{title}.json").write_text(json.dumps(calls[title]()), encoding="utf-8")
    files = {title: a.out / f"{title}.json" for title in WORLDS}
    worlds = {title: json.loads(file.read_text(encoding="utf-8")) for title, file in files.items() if file.is_file()}
    for title, rows in worlds.items():
        print(f"\n{title}\n{table(rows)}")
    draw_figure(worlds, a.out / "estimators.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
