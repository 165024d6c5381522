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
import tempfile
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from data import tiny
from data.prompts import Tokenizer
from evaluate import accuracy, check_room, complain, evaluate, load_model, out_of_memory, score
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss
from model import Decoder
from rollout import Rollout, completion_logprobs, generate
from skip import parse_valid_layers, sample_mask


def option(default, help: str, choices: tuple = (), low: float = 0, high: float = math.inf):
    """A field of Settings: a flag with its default, its help, and what it may be."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class Settings:
    """One run. Each field is a flag of the command line, `--skip-ratio` for skip_ratio."""

    model: str = option("", "folder of a checkpoint, or a hub id; none: a tiny model with random weights")
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

    steps: int = option(100, "batches of reinforced fine-tuning")
    prompts: int = option(8, "problems a batch", low=1)
    samples: int = option(8, "completions a problem, its group", low=2)
    max_new_tokens: int = option(128, "tokens of a completion at most; one that does not end earns 0", low=1)
    temperature: float = option(1.0, "τ of sampling and of the policy that is trained", low=0.01)
    lr: float = option(1e-5, "learning rate of AdamW")
    lr_warmup_steps: int = option(5, "steps over which the rate rises linearly")
    max_grad_norm: float = option(1.0, "the gradient is clipped to this norm; 0: not at all")
    micro_batch: int = option(8, "completions a forward and backward pass; changes memory, not the gradient", low=1)

    warmup_epochs: int = option(0, "epochs of supervised learning on the rationales before the reinforced steps")
    warmup_lr: float = option(1e-4, "the peak learning rate of the warm-up")
    warmup_batch: int = option(16, "problems a step of the warm-up", low=1)

    eval_every: int = option(10, "steps between greedy evaluations on the test split, besides before and after", low=1)
    eval_problems: int = option(300, "problems of the test split at most", low=1)
    dtype: str = option("float32", "of the forward and backward passes; AdamW is float32", ("float32", "bfloat16"))
    device: str = option("auto", "cpu, cuda, cuda:1 or mps; auto: the best there is")
    seed: int = option(
        0, "of the order of the problems, the masks, the completions and a tiny model's weights", high=2**31 - 1
    )

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


@dataclass
class Run:
    """What a run works with."""

    settings: Settings
    model: Decoder
    tokenizer: Tokenizer
    train: list[data.Problem]
    test: list[data.Problem]
    valid: list[int]  # SKIP
    log: "Log"


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

        with log.phase("sample"):
            rollout = generate(
                model,
                prompts,
                s.samples,
                s.max_new_tokens,
                run.tokenizer.eos_ids,
                temperature=s.temperature,
                skip=skip,  # SKIP
                seed=s.seed * 2**32 + step * s.prompts,
            )
        with log.phase("score"):
            records = score(run.tokenizer, problems, rollout)
            rewards = torch.tensor([[record["reward"] for record in samples] for samples in records])  # (P, G)
        advantages = group_advantages(rewards, s.advantage)  # (P, G)
        with log.phase("update"):
            loss, log_rho, entropy = accumulate_gradient(model, weights, rollout, advantages.flatten(), s)
            stepped = bool(advantages.any())
            lr = s.lr * min(1.0, step / max(1, s.lr_warmup_steps))
            norm = weights.step(lr, s.max_grad_norm) if stepped else None
            learned |= stepped

        figures = describe(rollout, rewards, advantages, log_rho, entropy, log.seconds["seconds_sample"])
        figures |= {"loss": loss if stepped else None, "grad_norm": norm, "lr": lr, "stepped": stepped}
        figures["skipped_layers"] = [layer for layer in range(n_layers) if skip[layer]]
        try:
            if step % s.eval_every == 0 or step == s.steps:
                log.write_samples(step, "nested, sampled", records)
                figures |= test_accuracy(run, step)
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
    """Supervised learning of the train split's rationales. Its loss is E3 with w = A = 1: the mean of −log π(token)."""
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
                ones = torch.ones_like(logprobs)
                part = policy_loss(logprobs, ones, ones[:, 0], mask[rows], normaliser(mask))
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


def pack(completions: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """Lists of token ids as tokens and mask, (n, T) each, as a `Rollout` holds them."""
    longest = max(map(len, completions))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in completions], device=device)
    lengths = torch.tensor([len(ids) for ids in completions], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]


def draw(problems: list[data.Problem], size: int, step: int, seed: int) -> list[data.Problem]:
    """The problems of step 1, 2, …: the data set in a new order each epoch; a function of the seed and the step."""
    n, draws = len(problems), range((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {i // n for i in draws}}
    return [problems[orders[i // n][i % n]] for i in draws]


def test_accuracy(run: Run, step: int) -> dict[str, float]:
    """Greedy accuracy of the full model on the first problems of the test split, as figures for the metrics."""
    s = run.settings
    with run.log.phase("evaluate"):
        batch = s.prompts * s.samples
        records = evaluate(run.model, run.tokenizer, run.test[: s.eval_problems], s.max_new_tokens, batch=batch)
    run.log.write_samples(step, "full, greedy", records)
    mean, error = accuracy(records)
    return {"test_accuracy": mean, "test_accuracy_se": error}


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


def readable(step: int, steps: int, f: dict) -> str:
    """A step's figures as the line for the terminal."""
    update = f"loss {f['loss']:+.4f}" if f["stepped"] else "no group has a signal: no step"
    line = (
        f"step {step}/{steps}  reward {f['reward']:.3f}  {update}  silent groups {f['silent_groups']:.0%}  "
        f"acceptance {f['acceptance']:.3f}  ess {f['ess']:.3f}  length {f['mean_length']:.0f}  "
        f"cut off {f['cut_off']:.0%}  {f['tokens_per_second']:.0f} tokens/s"
    )
    return line + (f"  {readable_accuracy(f)}" if "test_accuracy" in f else "")


def readable_accuracy(f: dict) -> str:
    return f"test {f['test_accuracy']:.1%} ± {f['test_accuracy_se']:.1%}"


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


# The keys of a line of metrics.jsonl; null where a figure is not defined. docs/method.md says what each is.
METRICS = (
    *("phase", "step", "reward", "test_accuracy", "test_accuracy_se", "loss", "grad_norm", "lr", "stepped"),
    *("skipped_layers", "acceptance", "k1", "k3", "ratio_min", "ratio_max", "max_abs_log_ratio", "ess", "entropy"),
    *("silent_groups", "cut_off", "mean_length", "tokens", "tokens_per_second"),
    *("seconds_sample", "seconds_score", "seconds_update", "seconds_evaluate"),
)


class Log:
    """What a run leaves behind: metrics.jsonl, samples.jsonl, a line a step on the terminal; each phase's time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.phase_now = ""  # for what is said when memory runs out
        self.saved = "none"  # the checkpoint, for the last line
        self.seconds = {}

    @contextmanager
    def phase(self, name: str):
        self.phase_now, start = name, time.perf_counter()
        yield
        self.phase_now = ""
        self.seconds[f"seconds_{name}"] = self.seconds.get(f"seconds_{name}", 0.0) + time.perf_counter() - start

    def write(self, line: str, **figures) -> None:
        figures |= self.seconds
        self.seconds = {}
        unknown = figures.keys() - set(METRICS)
        assert not unknown, f"not among METRICS: {unknown}"
        row = {key: figures.get(key) for key in METRICS}
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        tqdm.write(line)

    def write_samples(self, step: int, mode: str, records: list[list[dict]]) -> None:
        """The first sample of up to four problems, to see what the model does."""
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            for samples in records[:4]:
                file.write(json.dumps({"step": step, "mode": mode, **samples[0]}, ensure_ascii=False) + "\n")


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
        notes += [f"default: {f.default}"] if f.default != "" else []
        help = f.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
        flag, default = f"--{f.name.replace('_', '-')}", f.default
        parser.add_argument(flag, type=type(default), default=default, help=help, metavar="X")
    return Settings(**vars(parser.parse_args(arguments)))


def set_up(s: Settings) -> Run:
    """Reads all that the user named, before anything long is begun. Raises ValueError or OSError."""
    out = Path(s.out or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}").expanduser()
    if (out / "metrics.jsonl").exists() or (out / "checkpoint").exists():
        raise FileExistsError(f"--out {out} already holds a run or a checkpoint; name another folder")
    problems = {split: data.load(s.dataset, split, s.data_dir or None) for split in data.SPLITS}
    with tempfile.TemporaryDirectory() as folder:
        if not s.model:
            print(
                "no --model: a tiny one with random weights, which knows nothing before --warmup-epochs",
                file=sys.stderr,
            )
            tiny.build(folder, s.seed)
        model, tokenizer = load_model(s.model or folder, s.dtype, s.device, s.prompt_template or None)
    valid = parse_valid_layers(s.valid_layers, model.config.num_hidden_layers)  # SKIP
    sample_mask(model.config.num_hidden_layers, s.skip_ratio, valid, torch.Generator())  # SKIP: refuses what cannot be
    check_room(model, tokenizer, problems["train"] + problems["test"], s.max_new_tokens)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(s), indent=2) + "\n", encoding="utf-8")
    return Run(s, model, tokenizer, problems["train"], problems["test"], valid, Log(out))


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
        figures = test_accuracy(run, step=0)
        log.write(f"step 0/{s.steps}  {readable_accuracy(figures)}", phase="reinforce", step=0, **figures)
        save(run, "after step 0")
        reinforce(run)
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
