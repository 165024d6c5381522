"""Nested-ReFT: reinforced fine-tuning on maths problems with completions sampled from a nested model.

    python train.py --dataset svamp --skip-ratio 0.3

Each step draws a skip mask, samples from the model without the skipped layers, scores the answers, and moves the *full*
model along a policy gradient that is corrected for having been sampled elsewhere (E1-E8, losses.py). The loop is
`reinforce`: sample, score, advantage, loss, step. `warm_up` before it is supervised learning on worked solutions.

Every random draw is a function of (seed, step) alone. So all that `save` has to write for `--resume` to go on as if the
run had never stopped are weights, AdamW's moments, and how far it has come (checkpoint.py).
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, field, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from checkpoint import (
    MasterWeights,
    interrupted,
    newest_checkpoint,
    read_measured,
    restore,
    save,
    save_measured,
    terminable,
    uninterrupted,
)
from data.prompts import Tokenizer
from evaluate import accuracy, check_room, complain, evaluate, load_model, out_of_memory, score
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss, supervised_loss
from model import Decoder, find_checkpoint
from report import Log, examples, print_report, read, readable, readable_layers
from reward import GRADERS, grader
from rollout import (
    Rollout,
    completion_hidden,
    completion_logprobs,
    distinct,
    divergence,
    generate,
    pack,
    score_states,
)
from skip import Measured, Watch, measure, parse_valid_layers, sample_mask


def option(default, help: str, choices: tuple = (), low: float = 0, high: float = math.inf, word: str = ""):
    """A field of Settings: a flag with its default, its help, and what it may be; a number's may be a word as well."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high, "word": word})


def kind(f: Field) -> type:
    """str, int, float or bool; float of float | None."""
    return f.type if isinstance(f.type, type) else f.type.__args__[0]


PROBE = 16  # problems that nested models are measured on
FIT = 64  # problems that a bypass is fitted on
LOOK = 64  # tokens of a completion that are looked at for either
FAR = 0.5  # acceptance below which a warning is due
EMBEDDED = Path(__file__).parent / "data" / "tiny"  # the default model; data/tiny.py makes it


@dataclass(frozen=True)
class Settings:
    """One run. Each field is a flag of the command line, `--skip-ratio` for skip_ratio."""

    model: str = option("", "folder of a checkpoint, or a hub id; none: the embedded one, data/tiny")
    dataset: str = option("arith", f"problems to train and test on: {', '.join(data.DATASETS)}, or a file *.jsonl")
    data_dir: str = option("", "folder with the data set's files; none: a cache, filled by a download")
    grader: str = option(
        "rules", "who compares an answer that is no number: reward.py's rules alone, or math-verify too", GRADERS
    )
    prompt_template: str = option("", "prompt with {question} in it; none: the checkpoint's own chat template")
    out: str = option("", "folder to write to; none: runs/ and the time")

    skip_ratio: float | str = option(  # SKIP
        0.3,
        "share of all layers that a batch is sampled without, 0 to 1; auto: as --min-acceptance allows",
        high=1,
        word="auto",
    )
    min_acceptance: float = option(  # SKIP
        0.7, "acceptance of the batches that --skip-ratio auto keeps above", low=0.01, high=0.99
    )
    valid_layers: str = option(  # SKIP
        "measured", "layers that may be skipped: measured, by the acceptance, border:K, or a list such as 2,5,8-11"
    )
    bypass: str | None = option(  # SKIP
        None,
        "what a skipped layer becomes: the low-rank matrix or the mean closest to it, or the identity (default: "
        "linear; for the embedded model, which was trained to do without, identity)",
        ("linear", "mean", "identity"),
    )
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
    micro_batch_tokens: int = option(
        2048, "tokens of a forward and backward pass, prompts and padding too; changes memory, not the gradient", low=1
    )

    warmup_epochs: int | None = option(
        None,
        "epochs of supervised learning on the rationales before the reinforced steps (default: 0; for the embedded "
        "model, which knows arith alone, 20 on other problems)",
    )
    warmup_lr: float | None = option(None, "its peak learning rate (default: 1e-4; for the embedded model 1e-3)")
    warmup_batch: int = option(16, "problems a step of the warm-up", low=1)
    layer_dropout: float = option(  # SKIP
        0.0, "share of the layers without which the warm-up teaches the nested models too, rising to it", high=1
    )

    eval_every: int = option(20, "steps between evaluations on the test split, besides before and after", low=1)
    eval_problems: int = option(500, "problems of an evaluation at most", low=1)
    save_every: int = option(20, "steps between checkpoints, in the warm-up too", low=1)
    keep: int = option(2, "checkpoints to keep: the last one and, beside it, older ones", low=1)
    dtype: str = option("float32", "of the forward and backward passes; AdamW is float32", ("float32", "bfloat16"))
    compile: bool = option(False, "torch.compile, block by block: a slow first batch, then a faster update")
    gradient_checkpointing: bool = option(False, "compute in the backward pass again what else fills the memory")
    device: str = option("auto", "cpu, cuda, cuda:1 or mps; auto: the best there is")
    seed: int = option(0, "of the order of the problems, the masks and the completions", high=2**31 - 1)

    def __post_init__(self):
        """Raises ValueError that names the flag, what was given and what was expected."""
        for f in fields(self):
            value, choices, low, high = getattr(self, f.name), *(f.metadata[key] for key in ("choices", "low", "high"))
            given = f"--{f.name.replace('_', '-')} is {value!r}"
            undecided = value is None and f.default is None
            if value and value == f.metadata["word"]:
                continue
            if not undecided and not isinstance(value, (int, float) if kind(f) is float else kind(f)):
                raise ValueError(f"{given}; expected {kind(f).__name__}")
            if choices and not undecided and value not in choices:
                raise ValueError(f"{given}; expected one of {', '.join(choices)}")
            if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(
                    f"{given}; expected {low} or more"
                    if high == math.inf
                    else f"{given}; expected a number from {low} to {high}"
                    + f" or {f.metadata['word']}" * bool(f.metadata["word"])
                )
        normaliser(torch.ones(1, 1), self.normaliser)

    def decided(self) -> "Settings":
        """With the defaults that depend on the model in place of None."""
        embedded = not self.model or Path(self.model).resolve() == EMBEDDED.resolve()
        defaults = {
            "bypass": "identity" if embedded else "linear",
            "lr": 1e-4 if embedded else 1e-5,
            "warmup_lr": 1e-3 if embedded else 1e-4,
            "warmup_epochs": 20 if embedded and self.dataset != "arith" else 0,
        }
        decided = replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})
        if decided.layer_dropout and not decided.warmup_epochs:  # SKIP
            raise ValueError(
                f"--layer-dropout is {self.layer_dropout}; expected --warmup-epochs too, to drop layers in"
            )
        return decided


@dataclass
class Run:
    """What a run works with, and how far it has come."""

    settings: Settings
    model: Decoder
    tokenizer: Tokenizer
    train: list[data.Problem]
    tests: dict[str, list[data.Problem]]  # by split: test, and arith's wordings
    valid: list[int] | None  # SKIP: None: measured
    log: Log

    def __post_init__(self):
        self.weights = MasterWeights(self.model)
        self.grade = grader(self.settings.grader)
        self.phase = "warmup" if self.settings.warmup_epochs else "reinforce"
        self.step = 0  # that was taken last, within the phase
        self.figures: dict | None = None  # of that step, until they are written
        self.intact = True  # False while weights and step are on their way to the next step
        self.measured: Measured | None = None  # SKIP: by `measure_nested`
        ratio, n_layers = self.settings.skip_ratio, self.model.config.num_hidden_layers
        self.watch = Watch(1 if ratio == "auto" else round(ratio * n_layers))  # SKIP: without how many layers to sample

    def mask(self, n_skipped: int, step: int) -> tuple[bool, ...]:  # SKIP
        """D3 with that many layers: the mask of a step."""
        n_layers = self.model.config.num_hidden_layers
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + step) % 2**32)  # it reads 32 bits
        valid = self.valid
        if valid is None:
            valid = self.measured.valid_layers(n_skipped) if self.measured else []
        return sample_mask(n_layers, n_skipped / n_layers, valid, generator)

    def to_measure(self) -> bool:  # SKIP
        """Whether the valid layers or the bypass, where they are measured at all, are not yet, or no longer good."""
        layers, bypass = self.valid is None, self.settings.bypass != "identity"
        missing = (layers and self.measured is None) or (bypass and self.model.bypass is None)
        return missing or ((layers or bypass) and self.watch.drifted())


def reinforce(run: Run) -> None:
    """The method: batches, each sampled under a skip mask of its own, each one step of the full model."""
    s, model, log = run.settings, run.model, run.log
    if s.skip_ratio and run.to_measure():  # SKIP
        prepare_nested(run)
    if run.figures is not None:  # step 0, or a step whose evaluation was interrupted
        finish_step(run)
    for step in tqdm(range(run.step + 1, s.steps + 1), desc="steps", leave=False, disable=None):
        problems = draw(run.train, s.prompts, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        if s.skip_ratio and run.to_measure():  # SKIP
            prepare_nested(run)
        skip = run.mask(run.watch.n_skipped, step)  # SKIP

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
            records = score(run.tokenizer, problems, rollout, run.grade)
            rewards = torch.tensor([[record["reward"] for record in samples] for samples in records])  # (P, G)
        advantages = group_advantages(rewards, s.advantage)  # (P, G)
        compared = compare_with_full(run, problems, sample) if is_evaluated(s, step) and any(skip) else {}  # SKIP
        with log.phase("update"):
            loss, log_rho, entropy = accumulate_gradient(model, run.weights, rollout, advantages.flatten(), s)
            figures = describe(rollout, rewards, advantages, log_rho, entropy, log.seconds["seconds_sample"]) | compared
            figures["skipped_layers"] = [layer for layer, skipped in enumerate(skip) if skipped]
            figures["lr"] = s.lr * min(1.0, step / max(1, s.lr_warmup_steps))
            figures["stepped"] = bool(advantages.any())
            figures["loss"] = loss if figures["stepped"] else None
            take_step(run, step, figures, examples(step, "nested, sampled", records) if is_evaluated(s, step) else [])
        finish_step(run)
    if s.steps and not any(row["stepped"] for row in read(log.folder)):
        print("no batch had a signal, nothing was learned: warm up first (--warmup-epochs) or skip less (--skip-ratio)")


def prepare_nested(run: Run) -> None:  # SKIP
    """Has nested models measured, and says what came of it. What a checkpoint itself gives is kept beside it."""
    s = run.settings
    as_loaded = s.model and run.step == 0 and run.phase == ("warmup" if s.warmup_epochs else "reinforce")
    folder = find_checkpoint(s.model) if as_loaded else None
    if not folder or not read_measured(run, folder):
        with run.log.phase("evaluate"):
            measure_nested(run)
        if folder:
            try:
                save_measured(run, folder)
            except OSError as error:
                warnings.warn(f"what was measured cannot be kept beside the model: {error}", stacklevel=1)
    n_skipped = run.watch.n_skipped
    if run.measured:
        if s.skip_ratio == "auto" and run.watch.batches == 0:
            together = run.measured.together
            n_skipped = next((k for k, kept in enumerate(together) if kept < s.min_acceptance), len(together))
        print(readable_layers(run.measured, n_skipped))
    run.watch = Watch(n_skipped)


@torch.no_grad()
def measure_nested(run: Run) -> None:  # SKIP
    """What nested models are made from: the bypass and, where they are not given, the valid layers (skip.py).

    Measured on a few problems of the train split and the model's own completions of them; before a warm-up, which is
    to change what it writes, on their rationales. The bypass is fitted on other problems than the acceptance is of.
    """
    s, model, tokenizer = run.settings, run.model, run.tokenizer
    problems = draw(run.train, min(PROBE + FIT, len(run.train)), step=1, seed=0)  # the same for every seed of a run
    prompts, completions = worked(run, problems)
    if run.phase == "reinforce":
        stream = 2**31  # no step's
        length = min(s.max_new_tokens, LOOK)
        rollout = generate(model, prompts, 1, length, tokenizer.eos_ids, temperature=s.temperature, seed=stream)
        completions = [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]
    completions = [row[:LOOK] for row in completions]
    fit_bypass(run, prompts[-FIT:], completions[-FIT:])
    if run.valid is not None:
        return
    prompts, (tokens, mask) = prompts[:PROBE], pack(completions[:PROBE], model.lm_head.weight.device)
    full = completion_hidden(model, prompts, tokens, mask)

    def acceptance(skip: tuple[bool, ...]) -> float:
        states = completion_hidden(model, prompts, tokens, mask, skip)
        return divergence(full, states, model.lm_head.weight, s.temperature)[1].item()

    run.measured = measure(acceptance, model.config.num_hidden_layers)


def fit_bypass(run: Run, prompts: list[list[int]], completions: list[list[int]]) -> None:  # SKIP
    """The model's bypass as --bypass says, fitted on these sequences."""
    if run.settings.bypass != "identity":
        whole = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        rank = run.model.config.hidden_size // 4 if run.settings.bypass == "linear" else 0
        run.model.bypass = run.model.fit_bypass(*pack(whole, run.model.lm_head.weight.device), rank)


def is_evaluated(s: Settings, step: int) -> bool:
    return step % s.eval_every == 0 or step == s.steps


def take_step(run: Run, step: int, figures: dict, samples: list[dict]) -> None:
    """The step of the optimiser, where there is a gradient, and the state that goes with it: both, or neither."""
    with uninterrupted():
        run.intact = False
        norm = run.weights.step(figures["lr"], run.settings.max_grad_norm) if figures["stepped"] else None
        run.step, run.figures, run.log.samples = step, figures | {"grad_norm": norm}, samples
        if run.phase == "reinforce":  # SKIP
            run.watch.see(figures["acceptance"])
            if run.settings.skip_ratio == "auto":
                run.watch.adapt(
                    run.settings.min_acceptance, len(run.valid) if run.measured is None else run.measured.most
                )
            if run.watch.batches == 4 and run.watch.mean < FAR:
                warnings.warn(
                    f"the full model would accept {run.watch.mean:.0%} of what is sampled without "
                    f"{run.watch.n_skipped} layers: too little to learn from; skip less (--skip-ratio), or warm up "
                    "with --layer-dropout",
                    stacklevel=1,
                )
        run.intact = True


def finish_step(run: Run) -> None:
    """What follows a step: the evaluation, the line of metrics.jsonl, the checkpoint, each where it is time."""
    s, step, figures, samples = run.settings, run.step, run.figures, []
    if run.phase == "reinforce" and is_evaluated(s, step):
        accuracies, samples = test_accuracies(run, step)
        figures = figures | accuracies
    last = s.steps if run.phase == "reinforce" else warmup_steps(run)
    with uninterrupted():
        run.log.samples += samples
        line = readable(run.phase, step, last, figures, run.log.seconds.get("seconds_update"))
        run.log.write(line, phase=run.phase, step=step, **figures)
        run.figures = None
    if step % s.save_every == 0 or step == last:
        if not run.weights.finite():
            raise FloatingPointError("the weights are not finite")
        save(run)


def accumulate_gradient(
    model: Decoder, weights: MasterWeights, rollout: Rollout, advantages: Tensor, s: Settings
) -> tuple[float, Tensor, Tensor]:
    """The gradient of E3 over a batch, by micro-batches; advantages (N,) -> loss, log ρ (N, T), entropy (N, T).

    Completions without an advantage have no gradient: they go forward only, for the diagnostics.
    """
    z = normaliser(rollout.mask, s.normaliser)
    log_rho, entropy = torch.zeros_like(rollout.logprobs), torch.zeros_like(rollout.logprobs)
    advantages = advantages.to(log_rho)
    total = 0.0
    for rows, has_signal in micro_batches(rollout, advantages, s.micro_batch_tokens):
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


def micro_batches(rollout: Rollout, advantages: Tensor, budget: int) -> list[tuple[list[int], bool]]:
    """(rows, whether they have a gradient): those with and without a signal apart, each cut by tokens."""
    signal, lengths = advantages.tolist(), rollout.mask.sum(dim=1).tolist()
    with_signal, silent = ([row for row, a in enumerate(signal) if bool(a) == has] for has in (True, False))
    return [
        (rows, has_signal)
        for chosen, has_signal in ((with_signal, True), (silent, False))
        for rows in cut_by_tokens(chosen, rollout.prompts, lengths, budget)
    ]


def cut_by_tokens(rows: list[int], prompts: list[list[int]], lengths: list[int], budget: int) -> list[list[int]]:
    """Rows in batches of at most `budget` tokens, or of one row: completions of a prompt stand together, for they share
    its pass, and those of similar length, for a batch is as long as its longest."""

    def tokens(batch: list[int]) -> int:
        different, _ = distinct([prompts[row] for row in batch])
        return len(batch) * max(lengths[row] for row in batch) + len(different) * max(map(len, different))

    groups = defaultdict(list)
    for row in sorted(rows, key=lengths.__getitem__):
        groups[tuple(prompts[row])].append(row)
    batches = []
    for group in sorted(groups.values(), key=lambda group: lengths[group[-1]]):
        if not batches or tokens(batches[-1] + group) > budget:
            batches.append([])
        for row in group:
            if batches[-1] and tokens(batches[-1] + [row]) > budget:
                batches.append([])
            batches[-1].append(row)
    return batches


def warm_up(run: Run) -> None:
    """Supervised learning of the train split's rationales."""
    s, model, steps = run.settings, run.model, warmup_steps(run)
    if s.layer_dropout and run.to_measure():  # SKIP
        prepare_nested(run)
    if run.figures is not None:
        finish_step(run)
    for step in tqdm(range(run.step + 1, steps + 1), desc="warm-up", leave=False, disable=None):
        prompts, completions = worked(run, draw(run.train, s.warmup_batch, step, s.seed))
        tokens, mask = pack(completions, model.lm_head.weight.device)
        n_skipped = round(s.layer_dropout * min(1, 2 * step / steps) * model.config.num_hidden_layers)  # SKIP
        skip = run.mask(n_skipped, step)  # SKIP
        loss, accepted, z = 0.0, 0.0, normaliser(mask)
        with run.log.phase("update"):
            if n_skipped and step % 20 == 0:  # SKIP: the model has moved
                fit_bypass(run, *worked(run, draw(run.train, min(FIT, len(run.train)), step, s.seed)))
            lengths = mask.sum(dim=1).tolist()
            for rows in cut_by_tokens(list(range(len(prompts))), prompts, lengths, s.micro_batch_tokens):
                batch = model, [prompts[row] for row in rows], tokens[rows], mask[rows]
                states = completion_hidden(*batch)
                logprobs, _ = score_states(model, states, *batch[2:])
                part = supervised_loss(logprobs, mask[rows], z)
                if n_skipped:  # SKIP: the nested model learns to write what the full one would
                    share = len(states) / z
                    kl, overlap = divergence(states.detach(), completion_hidden(*batch, skip), model.lm_head.weight)
                    part, accepted = part + share * kl, accepted + share * overlap.item()
                part.backward()
                run.weights.collect_gradients()
                loss += part.item()
            lr = s.warmup_lr * min(1.0, step / max(1, steps // 20), 1 - (step - 1) / steps)  # up in 5 %, then down
            figures = {"loss": loss, "lr": lr, "stepped": True, "tokens": int(mask.sum())}
            if n_skipped:  # SKIP
                figures |= {"skipped_layers": [i for i, skipped in enumerate(skip) if skipped], "acceptance": accepted}
            take_step(run, step, figures, [])
        finish_step(run)
    with uninterrupted():
        run.measured = model.bypass = None  # SKIP: they were another model's
        run.weights = MasterWeights(model)  # AdamW begins anew
        run.phase, run.step, run.figures = "reinforce", 0, {}


def worked(run: Run, problems: list[data.Problem]) -> tuple[list[list[int]], list[list[int]]]:
    """The problems' prompts, and their rationales as completions."""
    prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
    return prompts, [run.tokenizer.encode_completion(problem.rationale) for problem in problems]


def warmup_steps(run: Run) -> int:
    return math.ceil(run.settings.warmup_epochs * len(run.train) / run.settings.warmup_batch)


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
        mean, _ = accuracy(score(run.tokenizer, problems, rollout, run.grade))
    length, speed = (int(rollout.mask.sum()) / per for per in (len(rollout.prompts), seconds))
    return {"full_reward": mean, "full_mean_length": length, "full_tokens_per_second": speed}


def test_accuracies(run: Run, step: int) -> tuple[dict[str, float], list[dict]]:
    """Accuracy of the full model, greedy and sampled, on the test split; before and after the run on all others too;
    and a few of its answers."""
    s, figures, samples = run.settings, {}, []
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
                    grade=run.grade,
                )
            samples += examples(step, f"{split}, full, {mode}", records)
            key = f"{split}_accuracy" + ("_sampled" if temperature else "")
            figures[key], figures[f"{key}_se"] = accuracy(records)
    return figures, samples


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


def parse(arguments: list[str] | None) -> tuple[dict, bool]:
    """The settings that were given, by name, and whether to resume."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for f in fields(Settings):
        notes = [", ".join(f.metadata["choices"])] if f.metadata["choices"] else []
        notes += [f"default: {f.default}"] if f.default not in ("", None) and kind(f) is not bool else []
        help = f.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
        flag = f"--{f.name.replace('_', '-')}"
        if kind(f) is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=help)
        else:
            parser.add_argument(
                flag,
                type=partial(number_or_word, f) if f.metadata["word"] else kind(f),
                default=argparse.SUPPRESS,
                help=help,
                metavar="X",
            )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, as if it had not stopped")
    given = vars(parser.parse_args(arguments))
    return given, given.pop("resume")


def number_or_word(f: Field, text: str) -> float | str:
    try:
        return text if text == f.metadata["word"] else kind(f)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {f.metadata['word']!r}") from None


def set_up(given: dict, resume: bool = False) -> Run:
    """Reads all that the user named, before anything long is begun or written. Raises ValueError or OSError."""
    s = settings_of(given) if resume else Settings(**given).decided()
    out = Path(os.path.expanduser(s.out or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}"))
    if not resume and ((out / "metrics.jsonl").exists() or (out / "checkpoint").exists()):
        raise FileExistsError(f"--out {out} already holds a run; name another folder, or go on with it (--resume)")
    if not s.model and not EMBEDDED.is_dir():
        raise FileNotFoundError(f"{EMBEDDED}: the embedded model is not there; `python -m data.tiny` makes it again")
    checkpoint = newest_checkpoint(out) if resume else None
    problems = {split: data.load(s.dataset, split, s.data_dir or None) for split in data.splits(s.dataset)}
    unsolved = sum(not problem.rationale for problem in problems["train"])
    if s.warmup_epochs and unsolved:
        raise ValueError(
            f"--warmup-epochs is {s.warmup_epochs}, but {unsolved:,} problems of {s.dataset} have no solution to learn "
            "from; expected a 'solution' in each record, or --warmup-epochs 0"
        )
    model, tokenizer = load_model(checkpoint or s.model or EMBEDDED, s.dtype, s.device, s.prompt_template or None)
    if s.compile:
        model.compile_blocks()
    if s.gradient_checkpointing:
        model.checkpoint_blocks()
    n_layers = model.config.num_hidden_layers
    valid = None if s.valid_layers == "measured" else parse_valid_layers(s.valid_layers, n_layers)  # SKIP
    for ratio in {s.skip_ratio, s.layer_dropout} - {"auto"}:  # SKIP: refuses what cannot be
        sample_mask(n_layers, ratio, range(n_layers) if valid is None else valid, torch.Generator())
    check_room(model, tokenizer, sum(problems.values(), []), s.max_new_tokens)
    run = Run(s, model, tokenizer, problems.pop("train"), problems, valid, Log(out))
    if checkpoint:
        restore(run, checkpoint)
        return run
    if run.phase == "reinforce":
        run.figures = {}  # step 0 is nothing but its evaluation
    if resume:  # it was killed before its first checkpoint
        run.log.rewind(run.log.sizes)
        return run
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(s), indent=2) + "\n", encoding="utf-8")
    return run


def settings_of(given: dict) -> Settings:
    """The settings of the run in --out. Whatever else is given has to be the same: another setting is another run."""
    if not given.get("out"):
        raise ValueError("--resume needs --out, the folder of the run to go on with")
    config = Path(os.path.expanduser(given["out"])) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"--resume: no run in {given['out']} ({config.name} is not there)")
    try:
        s = Settings(**json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config}: not the settings of a run ({error})") from None
    for name, value in given.items():
        if name != "out" and value != getattr(s, name):
            raise ValueError(
                f"--resume with --{name.replace('_', '-')} {value!r}: the run in {given['out']} has "
                f"{getattr(s, name)!r}; leave the flag out, or begin another run"
            )
    return replace(s, out=given["out"])


LESS_MEMORY = {
    "sample": "--samples, --prompts or --max-new-tokens",
    "update": "--micro-batch-tokens or --max-new-tokens, or try --gradient-checkpointing",
    "evaluate": "--samples or --prompts, whose product is the size of a batch, or --max-new-tokens",
}


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 2 for a wrong flag or file, 1 for trouble of the machine or the numbers, 130 and 143 for
    Ctrl-C and SIGTERM."""
    try:
        run = set_up(*parse(arguments))
    except (ValueError, OSError) as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print("error: out of memory while the model was loaded; take a smaller one", file=sys.stderr)
        return 1
    with terminable():
        try:
            status = work(run)
        except OSError as error:  # a full disk, a folder that went away
            complain(error)
            status = 1
        except KeyboardInterrupt as error:  # a second one, while the checkpoint of the first was written
            status = interrupted(error)
    print(f"checkpoint: {run.log.saved}")
    return status


def work(run: Run) -> int:
    """The run itself. Whatever ends it, the last good state is in DIR/checkpoint. Returns the exit status."""
    log = run.log
    try:
        if run.phase == "warmup":
            warm_up(run)
        reinforce(run)
        print_report(log.folder)
        return 0
    except (FloatingPointError, OverflowError) as error:  # weights that came to this are not worth keeping
        print(f"error: {error}; the last good checkpoint is kept", file=sys.stderr)
        return 1
    except OSError:  # no place for another checkpoint either
        raise
    except BaseException as error:
        if run.intact and run.weights.finite():
            save(run)
        if isinstance(error, KeyboardInterrupt):
            print("interrupted; --resume goes on from here", file=sys.stderr)
            return interrupted(error)
        if not out_of_memory(error):
            raise
        advice = LESS_MEMORY.get(log.phase_now, "the size of the model")
        print(f"error: out of memory (phase: {log.phase_now or 'set-up'}); lower {advice}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    sys.exit(main())
