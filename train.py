"""Nested-ReFT: reinforced fine-tuning on completions sampled from a nested model.

    python train.py --dataset svamp --skip-ratio 0.3

Each step draws a skip mask, samples from the model without the skipped layers, and grades the answers. Then the *full*
model moves along a policy gradient that is corrected for being off-policy (E1-E11, losses.py). That is `reinforce` and,
directly under it, `update`. `warm_up` is supervised learning on worked solutions, before it. How a run begins, is
resumed and ends stands in run.py.
"""

import support.interrupt  # noqa: F401 (Ctrl-C during the imports is one line)

import sys

import torch
from torch import Tensor

from data import draw_problems
from evaluate import (
    compare_with_full,  # SKIP
    grade,
)
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss, supervised_loss
from model import Decoder
from rollout import Rollout, completion_logprobs, generate
from run import Run, launch
from support.batches import micro_batches, pad_right
from support.distributed import all_reduce
from support.log import groups
from support.optimizer import Optimizer
from support.settings import Settings

LR_RAMP = 5  # steps over which the learning rate rises


def reinforce(run: Run) -> None:
    """The method in seven steps, numbered as in README: batches, each sampled under a skip mask of its own, each a step
    of the full model (or --updates)."""
    s, model, log = run.settings, run.model, run.log
    run.between_steps()
    for step in run.steps_to_go():
        problems = draw_problems(run.train, s.prompts, step, s.seed)  # 1 draw
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        seed = s.seed * 2**32 + step * s.prompts  # of the problems' streams: seed, seed + 1, …
        run.measure_if_due(step)  # SKIP: which layers may go, and what they become
        skip = run.nested.skip_mask(step)  # SKIP

        with log.phase("sample"):  # 2 sample
            rollout = generate(
                model, prompts, s.samples, s.max_new_tokens, run.tokenizer.eos_ids, s.temperature, seed=seed,
                skip=skip, bypass=run.nested.bypass, full_prefill=s.prefill == "full",  # SKIP
            )  # fmt: skip
        with log.phase("grade"):  # 3 grade
            records = grade(run.tokenizer, problems, rollout, run.grader)
        rewards = torch.tensor([[record["reward"] for record in group] for group in records])  # (P, G)
        advantages = group_advantages(rewards, s.advantage)  # 4 advantage, (P, G)
        figures = describe(rollout, rewards, advantages, log.seconds["seconds_sample"])
        figures["skipped_layers"] = [layer for layer, skipped in enumerate(skip) if skipped]  # SKIP
        if run.is_evaluated(step) and any(skip):  # SKIP
            with log.phase("evaluate"):
                figures |= compare_with_full(model, run.tokenizer, problems, s, seed, run.grader)

        lr = s.lr * min(1.0, step / LR_RAMP)
        with run.completing_step():  # from the first move of the weights to the boundary nothing interrupts
            with log.phase("update"):
                for _ in range(s.updates):
                    of_update, log_rho = update(model, run.optimizer, rollout, advantages.flatten(), s, lr)
                    figures |= of_update
                    if "loss" not in of_update:  # nothing moved, nor would it again
                        break
                figures["stepped"] = "loss" in figures
            samples = groups(step, records, rollout, log_rho, advantages) if run.is_evaluated(step) else []
            run.record_step(step, figures, samples)
        run.between_steps()


def update(
    model: Decoder, optimizer: Optimizer, rollout: Rollout, advantages: Tensor, s: Settings, lr: float
) -> tuple[dict[str, float], Tensor]:
    """One optimiser step of the full model on a batch, N completions with advantages (N,), by micro-batches of n.
    Returns the step's figures, with a loss if the weights moved, and log ρ as it was before the step, (N, T).

    After the first of several (--updates) the weights have moved since sampling: ρ is the ratio of today's π to the
    recorded η, and so corrects for that too.

    Completions without an advantage have no gradient: they go forward only, for the figures, which are of the whole
    batch, as Z is. FloatingPointError or OverflowError, before any weight has moved, if the numbers are not finite.
    """
    z = normaliser(rollout.mask, s.normaliser)
    log_rho, entropy = torch.zeros_like(rollout.logprobs), torch.zeros_like(rollout.logprobs)  # (N, T)
    advantages, total = advantages.to(log_rho), 0.0
    has_advantages = advantages != 0  # (N,): none has one in a zero-variance group, which goes forward only
    for rows, has_advantage in micro_batches(rollout.prompts, rollout.mask, has_advantages, s.micro_batch_tokens):
        at = torch.tensor(rows, device=model.device)
        prompts, tokens, mask = [rollout.prompts[row] for row in rows], rollout.tokens[at], rollout.mask[at]
        with torch.set_grad_enabled(has_advantage):
            logprobs, entropy[at] = completion_logprobs(model, prompts, tokens, mask, s.temperature)  # log π, (n, T)
        log_rho[at] = require_finite("the log-ratios are", log_ratio(logprobs, rollout.logprobs[at], mask))  # 5 ratio
        if has_advantage:
            w = gradient_weights(s.gradient, log_rho[at], mask, s.effective_cap, s.retrace_lambda, s.bound)  # 6 weight
            loss = require_finite("the loss is", policy_loss(logprobs, w, advantages[at], mask, z))
            loss.backward()
            optimizer.collect_gradients()
            total += loss.item()
    log_rho, entropy, total = map(all_reduce, (log_rho, entropy, total))  # each process has its own micro-batches
    figures = {"lr": lr, "entropy": entropy[rollout.mask].mean().item()} | diagnostics(log_rho, rollout.mask)
    norm = optimizer.step(lr, s.max_grad_norm) if advantages.any() else 0.0  # 7 update
    return figures | ({"loss": total, "grad_norm": norm} if norm else {}), log_rho


def require_finite(what: str, x: Tensor) -> Tensor:
    """x itself. FloatingPointError if it is not finite."""
    if not x.isfinite().all():
        raise FloatingPointError(f"{what} not finite")
    return x


def describe(rollout: Rollout, rewards: Tensor, advantages: Tensor, seconds: float) -> dict[str, float]:
    """The figures of one rollout, of all its completions, those of zero-variance groups included."""
    tokens = int(rollout.mask.sum())
    return {
        "reward": rewards.mean().item(),
        "zero_variance_groups": (advantages == 0).all(dim=1).float().mean().item(),
        "unfinished": (~rollout.ended).float().mean().item(),
        "mean_length": tokens / len(rollout.prompts),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
    }


def warm_up(run: Run) -> None:
    """Supervised learning of the train split's rationales. It ends at the boundary before the first reinforced step."""
    s, model, steps = run.settings, run.model, run.final_step()
    for step in run.steps_to_go():
        problems = draw_problems(run.train, s.warmup_batch, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        solutions = [run.tokenizer.encode_completion(problem.rationale) for problem in problems]
        tokens, mask = pad_right(solutions, model.device)  # (B, T)
        z, total = normaliser(mask), 0.0
        lr = s.warmup_lr * min(1.0, step / max(1, steps // 20), 1 - (step - 1) / steps)  # up in 5 %, then down
        with run.completing_step():
            with run.log.phase("update"):
                for rows, _ in micro_batches(prompts, mask, mask[:, 0], s.micro_batch_tokens):
                    at = torch.tensor(rows, device=model.device)
                    logprobs, _ = completion_logprobs(model, [prompts[row] for row in rows], tokens[at], mask[at])
                    loss = supervised_loss(logprobs, mask[at], z)
                    loss.backward()
                    run.optimizer.collect_gradients()
                    total += loss.item()
                norm = run.optimizer.step(lr, s.max_grad_norm)
            loss, tokens = all_reduce(total), int(mask.sum())
            run.record_step(step, {"loss": loss, "lr": lr, "stepped": True, "tokens": tokens, "grad_norm": norm}, [])
        run.between_steps()
    run.begin_reinforcing()


def learn(run: Run) -> None:
    if run.phase == "warmup":
        warm_up(run)
    reinforce(run)


def main(arguments: list[str] | None = None) -> int:
    return launch(learn, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
