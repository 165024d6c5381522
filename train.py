"""Nested-ReFT: reinforced fine-tuning on maths problems with completions sampled from a nested model.

    python train.py --dataset svamp --skip-ratio 0.3

Each step draws a skip mask, samples from the model without the skipped layers, scores the answers, and moves the *full*
model along a policy gradient that is corrected for having been sampled elsewhere (E1-E8, losses.py). The loop is
`reinforce`: sample, score, advantage, loss, step. `warm_up` before it is supervised learning on worked solutions.

Every random draw is a function of (seed, step) alone; nothing else has to be remembered for a run to be repeated.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from data.prompts import Tokenizer
from evaluate import accuracy, check_room, complain, evaluate, load_model, out_of_memory, score
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss, supervised_loss
from model import Decoder
from report import Log, print_report, readable, readable_accuracy
from rollout import Rollout, completion_logprobs, generate, pack
from skip import parse_valid_layers, sample_mask


def option(default, help: str, choices: tuple = (), low: float = 0, high: float = math.inf):
    """A field of Settings: a flag with its default, its help, and what it may be."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


EMBEDDED = Path(__file__).parent / "data" / "tiny"  # the default model; data/tiny.py makes it


@dataclass(frozen=True)
class Settings:
    """One run. Each field is a flag of the command line, `--skip-ratio` for skip_ratio."""

    model: str = option("", "folder of a checkpoint, or a hub id; none: the embedded one, data/tiny")
    dataset: str = option("arith", "problems to train and test on", data.DATASETS)
    data_dir: str = option("", "folder with the data set's files; none: a cache, filled by a download")
    prompt_template: str = option("", "prompt with {question} in it; none: the checkpoint's own chat template")
    out: str = option("", "folder to write to; none: runs/ and the time")

    skip_ratio: float = option(0.3, "share of all layers that a batch is sampled without, 0 to 1", high=1)  # SKIP
    valid_layers: str = option("border:1", "layers that may be skipped: border:K or a list such as 2,5,8-11")  # SKIP
    gradient: str = option("is", "correction for sampling from the nested model", ("on-policy", "is", "retrace"))
    is_level: str = option("token", "importance weights by token (E6) or by sequence (E5)", ("token", "sequence"))
    is_cap: float = option(2.0, "importance weights are truncated here; 0: not at all")
    retrace_trace: str = option("product", "Retrace with its product (E7) or by token (E8)", ("product", "token"))
    retrace_lambda: float = option(1.0, "λ of Retrace, 0 to 1", high=1)
    retrace_c_bar: float = option(1.0, "c̄ of Retrace's product, the bound of a token's own ratio", low=0.01)
    advantage: str = option("grpo", "baseline of a group's rewards", ("grpo", "mean", "rloo"))
    normaliser: str = option("tokens", "Z of the loss: tokens or completions of the batch, or a number")

    steps: int = option(60, "batches of reinforced fine-tuning")
    prompts: int = option(8, "problems a batch", low=1)
    samples: int = option(8, "completions a problem, its group", low=2)
    max_new_tokens: int = option(128, "tokens of a completion at most; one that does not end earns 0", low=1)
    temperature: float = option(1.0, "τ of sampling and of the policy that is trained", low=0.01)
    lr: float | None = option(None, "learning rate of AdamW (default: 1e-5; for the embedded model 1e-4)")
    lr_warmup_steps: int = option(5, "steps over which the rate rises linearly")
    max_grad_norm: float = option(1.0, "the gradient is clipped to this norm; 0: not at all")
    micro_batch: int = option(8, "completions a forward and backward pass; changes memory, not the gradient", low=1)

    warmup_epochs: int | None = option(
        None,
        "epochs of supervised learning on the rationales before the reinforced steps (default: 0; for the embedded "
        "model, which knows arith alone, 20 on other problems)",
    )
    warmup_lr: float | None = option(None, "its peak learning rate (default: 1e-4; for the embedded model 1e-3)")
    warmup_batch: int = option(16, "problems a step of the warm-up", low=1)

    eval_every: int = option(20, "steps between evaluations on the test split, besides before and after", low=1)
    eval_problems: int = option(500, "problems of an evaluation at most", low=1)
    dtype: str = option("float32", "of the forward and backward passes; AdamW is float32", ("float32", "bfloat16"))
    device: str = option("auto", "cpu, cuda, cuda:1 or mps; auto: the best there is")
    seed: int = option(0, "of the order of the problems, the masks and the completions", high=2**31 - 1)

    def __post_init__(self):
        """Raises ValueError that names the flag, what was given and what was expected."""
        for f in fields(self):
            value, choices, low, high = getattr(self, f.name), *(f.metadata[key] for key in ("choices", "low", "high"))
            given = f"--{f.name.replace('_', '-')} is {value!r}"
            if choices and value not in choices:
                raise ValueError(f"{given}; expected one of {', '.join(choices)}")
            if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(
                    f"{given}; expected {low} or more"
                    if high == math.inf
                    else f"{given}; expected a number from {low} to {high}"
                )
        normaliser(torch.ones(1, 1), self.normaliser)

    def decided(self) -> "Settings":
        """With the defaults that depend on the model in place of None."""
        embedded = not self.model or Path(self.model).resolve() == EMBEDDED.resolve()
        defaults = {
            "lr": 1e-4 if embedded else 1e-5,
            "warmup_lr": 1e-3 if embedded else 1e-4,
            "warmup_epochs": 20 if embedded and self.dataset != "arith" else 0,
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})


@dataclass
class Run:
    """What a run works with."""

    settings: Settings
    model: Decoder
    tokenizer: Tokenizer
    train: list[data.Problem]
    tests: dict[str, list[data.Problem]]  # by split: test, and arith's wordings
    valid: list[int]  # SKIP
    log: Log


def reinforce(run: Run) -> None:
    """The method: batches, each sampled under a skip mask of its own, each one step of the full model."""
    s, model, log = run.settings, run.model, run.log
    weights = MasterWeights(model)
    n_layers, learned = model.config.num_hidden_layers, False
    for step in tqdm(range(1, s.steps + 1), desc="steps", leave=False, disable=None):
        problems = draw(run.train, s.prompts, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        masks = torch.Generator().manual_seed((s.seed * 1_000_003 + step) % 2**32)  # SKIP: it reads 32 bits
        skip = sample_mask(n_layers, s.skip_ratio, run.valid, masks)  # SKIP

        sample = partial(
            generate,
            model,
            prompts,
            s.samples,
            s.max_new_tokens,
            run.tokenizer.eos_ids,
            temperature=s.temperature,
            seed=s.seed * 2**32 + step * s.prompts,
        )
        with log.phase("sample"):
            rollout = sample(skip=skip)  # SKIP
        with log.phase("score"):
            records = score(run.tokenizer, problems, rollout)
            rewards = torch.tensor([[record["reward"] for record in samples] for samples in records])  # (P, G)
        advantages = group_advantages(rewards, s.advantage)  # (P, G)
        evaluated = step % s.eval_every == 0 or step == s.steps
        compared = compare_with_full(run, problems, sample) if evaluated and any(skip) else {}  # SKIP
        with log.phase("update"):
            loss, log_rho, entropy = accumulate_gradient(model, weights, rollout, advantages.flatten(), s)
            stepped = bool(advantages.any())
            lr = s.lr * min(1.0, step / max(1, s.lr_warmup_steps))
            norm = weights.step(lr, s.max_grad_norm) if stepped else None
            learned |= stepped

        figures = describe(rollout, rewards, advantages, log_rho, entropy, log.seconds["seconds_sample"])
        figures |= {"loss": loss if stepped else None, "grad_norm": norm, "lr": lr, "stepped": stepped} | compared
        figures["skipped_layers"] = [layer for layer in range(n_layers) if skip[layer]]
        try:
            if evaluated:
                log.write_samples(step, "nested, sampled", records)
                figures |= test_accuracies(run, step)
                save(run, f"after step {step}")
        finally:  # the step is taken, whatever becomes of the evaluation
            log.write(readable(step, s.steps, figures), phase="reinforce", step=step, **figures)
    if s.steps and not learned:
        print("no batch had a signal, nothing was learned: warm up first (--warmup-epochs) or skip less (--skip-ratio)")


def accumulate_gradient(
    model: Decoder, weights: "MasterWeights", rollout: Rollout, advantages: Tensor, s: Settings
) -> tuple[float, Tensor, Tensor]:
    """The gradient of E3 over a batch, by micro-batches; advantages (N,) -> loss, log ρ (N, T), entropy (N, T).

    Completions without an advantage have no gradient: they go forward only, for the diagnostics.
    """
    z = normaliser(rollout.mask, s.normaliser)
    log_rho, entropy = torch.zeros_like(rollout.logprobs), torch.zeros_like(rollout.logprobs)
    advantages = advantages.to(log_rho)
    total = 0.0
    for rows, has_signal in micro_batches(rollout, advantages, s.micro_batch):
        prompts, mask = [rollout.prompts[row] for row in rows], rollout.mask[rows]
        with torch.set_grad_enabled(has_signal):
            logprobs, entropy[rows] = completion_logprobs(model, prompts, rollout.tokens[rows], mask, s.temperature)
        log_rho[rows] = log_ratio(logprobs, rollout.logprobs[rows], mask)
        if not log_rho[rows].isfinite().all():
            raise FloatingPointError("the model's log-probabilities are not finite")
        if not has_signal:
            continue
        w = gradient_weights(
            s.gradient,
            log_rho[rows],
            mask,
            level=s.is_level,
            cap=s.is_cap or None,
            lam=s.retrace_lambda,
            trace=s.retrace_trace,
            c_bar=s.retrace_c_bar,
        )
        loss = policy_loss(logprobs, w, advantages[rows], mask, z)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()}")
        loss.backward()
        weights.collect_gradients()
        total += loss.item()
    return total, log_rho, entropy


def micro_batches(rollout: Rollout, advantages: Tensor, size: int) -> list[tuple[list[int], bool]]:
    """Rows of similar length together, with and without a signal apart: (rows, whether they have a gradient)."""
    lengths = [len(prompt) + n for prompt, n in zip(rollout.prompts, rollout.mask.sum(dim=1).tolist(), strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = []
    for has_signal in (True, False):
        rows = [row for row in order if bool(advantages[row]) == has_signal]
        batches += [(rows[start : start + size], has_signal) for start in range(0, len(rows), size)]
    return batches


def warm_up(run: Run) -> None:
    """Supervised learning of the train split's rationales."""
    s, model, log = run.settings, run.model, run.log
    weights = MasterWeights(model)
    steps = math.ceil(s.warmup_epochs * len(run.train) / s.warmup_batch)
    for step in tqdm(range(1, steps + 1), desc="warm-up", leave=False, disable=None):
        problems = draw(run.train, s.warmup_batch, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        tokens, mask = pack(
            [run.tokenizer.encode_completion(p.rationale) for p in problems], model.lm_head.weight.device
        )
        loss = 0.0
        with log.phase("update"):
            for start in range(0, len(problems), s.micro_batch):
                rows = slice(start, start + s.micro_batch)
                logprobs, _ = completion_logprobs(model, prompts[rows], tokens[rows], mask[rows])
                part = supervised_loss(logprobs, mask[rows], normaliser(mask))
                part.backward()
                weights.collect_gradients()
                loss += part.item()
            lr = s.warmup_lr * min(1.0, step / max(1, steps // 20), 1 - (step - 1) / steps)  # up in 5 %, then down
            norm = weights.step(lr, s.max_grad_norm)
        seconds = log.seconds["seconds_update"]
        log.write(
            f"warm-up {step}/{steps}  loss {loss:.3f}  {seconds:.1f} s", phase="warmup", step=step, loss=loss,
            grad_norm=norm, lr=lr, stepped=True, tokens=int(mask.sum()),
        )  # fmt: skip


def draw(problems: list[data.Problem], size: int, step: int, seed: int) -> list[data.Problem]:
    """The problems of step 1, 2, …: the data set in a new order each epoch; a function of the seed and the step."""
    n, draws = len(problems), range((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {i // n for i in draws}}
    return [problems[orders[i // n][i % n]] for i in draws]


def compare_with_full(run: Run, problems: list[data.Problem], sample: Callable[..., Rollout]) -> dict[str, float]:
    """The full model on the batch that the nested one has just been given, from the same streams: cost and reward."""
    with run.log.phase("evaluate"):
        start = time.perf_counter()
        rollout = sample()
        seconds = time.perf_counter() - start
        mean, _ = accuracy(score(run.tokenizer, problems, rollout))
    length, speed = (int(rollout.mask.sum()) / per for per in (len(rollout.prompts), seconds))
    return {"full_reward": mean, "full_mean_length": length, "full_tokens_per_second": speed}


def test_accuracies(run: Run, step: int) -> dict[str, float]:
    """Accuracy of the full model, greedy and sampled, on the test split; before and after the run on all others too."""
    s, figures = run.settings, {}
    for split, problems in run.tests.items():
        if split != "test" and 0 < step < s.steps:
            continue
        for mode, temperature in (("greedy", 0.0), ("sampled", s.temperature)):
            with run.log.phase("evaluate"):
                records = evaluate(
                    run.model,
                    run.tokenizer,
                    problems[: s.eval_problems],
                    s.max_new_tokens,
                    temperature=temperature,
                    batch=s.prompts * s.samples,
                )
            run.log.write_samples(step, f"{split}, full, {mode}", records)
            key = f"{split}_accuracy" + ("_sampled" if temperature else "")
            figures[key], figures[f"{key}_se"] = accuracy(records)
    return figures


def describe(
    rollout: Rollout, rewards: Tensor, advantages: Tensor, log_rho: Tensor, entropy: Tensor, seconds: float
) -> dict[str, float]:
    """The figures of one batch, of all its completions, the silent groups' included."""
    tokens = int(rollout.mask.sum())
    return {
        "reward": rewards.mean().item(),
        "silent_groups": (advantages == 0).all(dim=1).float().mean().item(),
        "cut_off": (~rollout.ended).float().mean().item(),
        "mean_length": tokens / len(rollout.prompts),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "entropy": entropy[rollout.mask].mean().item(),
        **diagnostics(log_rho, rollout.mask),
    }


class MasterWeights:
    """AdamW on float32 weights; the model's own, of whatever dtype, are rounded from them after each step.

    In bfloat16 an update of 1e-6 would round to nothing (8 bits of mantissa); here it adds up until it shows. Gradients
    of micro-batches are added up in float32 as well. A float32 model is its own master, without a copy.
    """

    def __init__(self, model: Decoder):
        self.working = list(model.parameters())
        copies = self.working[0].dtype != torch.float32
        self.masters = [p.detach().float() for p in self.working] if copies else self.working
        self.adamw = torch.optim.AdamW(self.masters, weight_decay=0.0)

    def collect_gradients(self) -> None:
        """To be called after each backward pass."""
        for master, working in zip(self.masters, self.working, strict=True):
            if master is not working and working.grad is not None:
                gradient = working.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                working.grad = None

    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clips, steps, forgets the gradient; returns its norm before clipping. FloatingPointError if not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters, max_grad_norm or math.inf).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        for group in self.adamw.param_groups:
            group["lr"] = lr
        with uninterrupted(), torch.no_grad():
            self.adamw.step()
            self.adamw.zero_grad()
            for master, working in zip(self.masters, self.working, strict=True):
                if master is not working:
                    working.copy_(master)
        return norm


@contextmanager
def uninterrupted():
    """Ctrl-C waits for the end of this block: half a step or half a file is worth less than none."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def parse(arguments: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for f in fields(Settings):
        notes = [", ".join(f.metadata["choices"])] if f.metadata["choices"] else []
        notes += [f"default: {f.default}"] if f.default not in ("", None) else []
        help = f.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
        kind = f.type if isinstance(f.type, type) else f.type.__args__[0]  # float of float | None
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=f.default, help=help, metavar="X")
    return Settings(**vars(parser.parse_args(arguments)))


def set_up(s: Settings) -> Run:
    """Reads all that the user named, before anything long is begun. Raises ValueError or OSError."""
    s = s.decided()
    out = Path(s.out or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}").expanduser()
    if (out / "metrics.jsonl").exists() or (out / "checkpoint").exists():
        raise FileExistsError(f"--out {out} already holds a run or a checkpoint; name another folder")
    if not s.model and not EMBEDDED.is_dir():
        raise FileNotFoundError(f"{EMBEDDED}: the embedded model is not there; `python -m data.tiny` makes it again")
    problems = {split: data.load(s.dataset, split, s.data_dir or None) for split in data.SPLITS[s.dataset]}
    model, tokenizer = load_model(s.model or EMBEDDED, s.dtype, s.device, s.prompt_template or None)
    valid = parse_valid_layers(s.valid_layers, model.config.num_hidden_layers)  # SKIP
    sample_mask(model.config.num_hidden_layers, s.skip_ratio, valid, torch.Generator())  # SKIP: refuses what cannot be
    check_room(model, tokenizer, sum(problems.values(), []), s.max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(s), indent=2) + "\n", encoding="utf-8")
    return Run(s, model, tokenizer, problems.pop("train"), problems, valid, Log(out))


def save(run: Run, when: str) -> None:
    """DIR/checkpoint, a Hugging Face folder: the new one whole, or the old one."""
    folder, partial = run.log.folder / "checkpoint", run.log.folder / "checkpoint.partial"
    with uninterrupted():
        run.model.save_pretrained(partial)
        run.tokenizer.save(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        run.log.saved = f"{folder} ({when})"


LESS_MEMORY = {
    "sample": "--samples, --prompts or --max-new-tokens",
    "update": "--micro-batch or --max-new-tokens",
    "evaluate": "--samples or --prompts, whose product is the size of a batch, or --max-new-tokens",
}


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 2 for a wrong flag or file, 1 for trouble of the machine or the numbers, 130 Ctrl-C."""
    try:
        run = set_up(parse(arguments))
    except (ValueError, OSError) as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print("error: out of memory while the model was loaded; take a smaller one", file=sys.stderr)
        return 1
    try:
        status = work(run)
    except OSError as error:  # a full disk, a folder that went away
        complain(error)
        status = 1
    except KeyboardInterrupt:  # a second one, while the checkpoint of the first was written
        status = 130
    print(f"checkpoint: {run.log.saved}")
    return status


def work(run: Run) -> int:
    """The run itself. Whatever ends it, the last good weights are in DIR/checkpoint. Returns the exit status."""
    s, log = run.settings, run.log
    try:
        if s.warmup_epochs:
            warm_up(run)
        figures = test_accuracies(run, step=0)
        log.write(f"step 0/{s.steps}  {readable_accuracy(figures)}", phase="reinforce", step=0, **figures)
        save(run, "after step 0")
        reinforce(run)
        print_report(log.folder)
        return 0
    except (FloatingPointError, OverflowError) as error:  # weights that came to this are not worth keeping
        print(f"error: {error}; the last good checkpoint is kept", file=sys.stderr)
        return 1
    except BaseException as error:
        save(run, "when it stopped")
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            return 130
        if not out_of_memory(error):
            raise
        advice = LESS_MEMORY.get(log.phase_now, "the size of the model")
        print(f"error: out of memory (phase: {log.phase_now or 'set-up'}); lower {advice}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    sys.exit(main())
