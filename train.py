"""Nested-ReFT: reinforced fine-tuning on maths problems with completions sampled from a nested model.

    python train.py --dataset svamp --skip-ratio 0.3

Each step draws a skip mask, samples from the model without the skipped layers, scores the answers, and moves the *full*
model along a policy gradient that is corrected for having been sampled elsewhere (E1-E11, losses.py): `reinforce` and,
directly under it, `update`. `warm_up` is supervised learning on worked solutions, before it. Then comes the run: its
state, what it measures on the way, how it begins and how it ends.

Every random number is a function of (seed, step), or fixed. So a checkpoint holds the weights, AdamW's moments, what
nested models are made from, and how far the run has come (`Run.state`); `--resume` goes on as if it had never stopped.
"""

import math
import os
import shlex
import subprocess
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

import data
import lora
import nested  # SKIP
from evaluate import (
    compare_with_full,  # SKIP
    evaluate_splits,
    score,
)
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss, supervised_loss
from model import Decoder
from nested import Nested  # SKIP
from report import print_report
from rollout import Rollout, completion_logprobs, cut_by_tokens, generate, micro_batches, pack
from skip import parse_valid_layers, sample_mask  # SKIP
from support import checkpoint, distributed
from support.checkpoint import hear_signals, hear_together, terminable, uninterrupted
from support.distributed import added, alone, anyone, balanced, deal, everyone, from_first
from support.graders import grader
from support.log import Log, complain, examples, groups, out_of_memory, read
from support.memory import check as check_memory
from support.optimizer import Optimizer
from support.pretrained import check_room, find_checkpoint, load_model, pick_device
from support.settings import Settings, parse, settings_of, write_settings
from support.tokenizer import Tokenizer

FAR = 0.05  # SKIP: sequence acceptance of the first batch below which a warning is due
LR_WARMUP = 5  # steps over which the learning rate rises
FEW = 50  # problems of a test split below which a warning is due
OFTEN = 600  # seconds between checkpoints at most
FORMAT = 4  # of a checkpoint's state


def reinforce(run: "Run") -> None:
    """The method: batches, each sampled under a skip mask of its own, each a step of the full model (or --updates)."""
    s, model, log = run.settings, run.model, run.log
    at_boundary(run)  # evaluation and checkpoint, if due
    for step in run.steps_to_go():
        problems = draw_problems(run.train, s.prompts, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        sample = partial(generate, model, prompts, s.samples, s.max_new_tokens, run.tokenizer.eos_ids, s.temperature)
        sample = partial(sample, seed=s.seed * 2**32 + step * s.prompts)
        skip = run.skip_mask(step)  # SKIP
        full, sample = sample, partial(sample, skip=skip, full_prompt=s.prefill == "full")  # SKIP

        with log.phase("sample"):
            rollout = sample()
        with log.phase("score"):
            records = from_first(partial(score, run.tokenizer, problems, rollout, run.grade))
            rewards = torch.tensor([[record["reward"] for record in group] for group in records])  # (P, G)
        advantages = group_advantages(rewards, s.advantage)  # (P, G)
        figures = describe(rollout, rewards, advantages, log.seconds["seconds_sample"])
        figures["skipped_layers"] = [layer for layer, skipped in enumerate(skip) if skipped]  # SKIP
        if run.is_evaluated(step) and any(skip):  # SKIP
            with log.phase("evaluate"):
                figures |= compare_with_full(run.tokenizer, problems, full, run.grade)

        lr = s.lr * min(1.0, step / LR_WARMUP)
        with uninterrupted():
            with log.phase("update"):
                for moved in range(s.updates):
                    of_update, log_rho = update(model, run.optimizer, rollout, advantages.flatten(), s, lr, not moved)
                    figures |= of_update | {"stepped": moved > 0 or of_update["stepped"]}
                    if not of_update["stepped"]:
                        break
                    run.whole = False  # until the step is counted
            seen = groups(step, records, rollout, log_rho, advantages) if run.is_evaluated(step) else []
            run.advance(step, figures, seen)
        if step == 1 and any(skip) and figures["sequence_acceptance"] < FAR:  # SKIP
            warnings.warn(too_far(figures), stacklevel=1)
        at_boundary(run)
    if s.steps and not from_first(lambda: any(row["stepped"] for row in read(log.folder))):
        print("no batch had a signal, nothing was learned: warm up (--warmup-epochs) or skip less (--skip-ratio)")


def update(
    model: Decoder,
    optimizer: Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    s: Settings,
    lr: float,
    hear: bool = True,
) -> tuple[dict[str, float], Tensor]:
    """One optimiser step of the full model on a batch, N completions with advantages (N,), by micro-batches of n.
    Returns the step's figures, and log ρ as it was before the step, (N, T).

    After the first of several (--updates) the model is another one than the rollout came from, even with nothing
    skipped: the ratios to the recorded probabilities say so.  hear: Ctrl-C may end it before the weights move.

    Completions without an advantage have no gradient: they go forward only, for the figures, which are of the whole
    batch, as Z is. FloatingPointError or OverflowError, before any weight has moved, if the numbers are not finite.
    """
    z = normaliser(rollout.mask, s.normaliser)
    log_rho, entropy = torch.zeros_like(rollout.logprobs), torch.zeros_like(rollout.logprobs)  # (N, T)
    advantages, total = advantages.to(log_rho), 0.0
    batches = micro_batches(rollout, advantages, balanced(s.micro_batch_tokens, rollout.mask.numel()))
    for rows, has_signal in deal(batches, [len(rows) * (1 + 2 * has_signal) for rows, has_signal in batches]):
        if hear:  # nothing has changed yet: Ctrl-C need not wait for the whole step
            hear_signals()
        at = torch.tensor(rows, device=model.device)
        prompts, tokens, mask = [rollout.prompts[row] for row in rows], rollout.tokens[at], rollout.mask[at]
        with torch.set_grad_enabled(has_signal):
            logprobs, entropy[at] = completion_logprobs(model, prompts, tokens, mask, s.temperature)  # log π, (n, T)
        log_rho[at] = finite("the log-ratios are", log_ratio(logprobs, rollout.logprobs[at], mask))
        if has_signal:
            w = gradient_weights(s.gradient, log_rho[at], mask, s.truncation, s.retrace_lambda, s.bound)  # (n, T)
            loss = finite("the loss is", policy_loss(logprobs, w, advantages[at], mask, z))
            loss.backward()
            optimizer.collect_gradients()
            total += loss.item()
    total, log_rho, entropy = sum(everyone(total)), added(log_rho), added(entropy)
    figures = {"lr": lr, "entropy": entropy[rollout.mask].mean().item()} | diagnostics(log_rho, rollout.mask)
    norm = optimizer.step(lr, s.max_grad_norm) if advantages.any() else 0.0
    figures |= {"stepped": True, "loss": total, "grad_norm": norm} if norm else {"stepped": False}
    return figures, log_rho


def finite(what: str, x: Tensor) -> Tensor:
    """x itself. FloatingPointError if it is not finite."""
    if not x.isfinite().all():
        raise FloatingPointError(f"{what} not finite")
    return x


def warm_up(run: "Run") -> None:
    """Supervised learning of the train split's rationales. It ends at the boundary before the first reinforced step."""
    s, model, steps = run.settings, run.model, run.last_step()
    for step in run.steps_to_go():
        problems = draw_problems(run.train, s.warmup_batch, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        tokens, mask = pack([run.tokenizer.encode_completion(p.rationale) for p in problems], model.device)
        loss, z, lengths = 0.0, normaliser(mask), mask.sum(dim=1).tolist()
        lr = s.warmup_lr * min(1.0, step / max(1, steps // 20), 1 - (step - 1) / steps)  # up in 5 %, then down
        with uninterrupted():
            with run.log.phase("update"):
                budget = balanced(s.micro_batch_tokens, mask.numel())
                batches = cut_by_tokens(list(range(len(prompts))), prompts, lengths, budget)
                for rows in deal(batches, [len(rows) for rows in batches]):
                    hear_signals()
                    at = torch.tensor(rows, device=model.device)
                    logprobs, _ = completion_logprobs(model, [prompts[row] for row in rows], tokens[at], mask[at])
                    part = supervised_loss(logprobs, mask[at], z)
                    part.backward()
                    run.optimizer.collect_gradients()
                    loss += part.item()
                figures = {"loss": sum(everyone(loss)), "lr": lr, "stepped": True, "tokens": int(mask.sum())}
                figures["grad_norm"] = run.optimizer.step(lr, s.max_grad_norm)
            run.advance(step, figures, [])
        at_boundary(run)
    with uninterrupted():
        run.optimizer = Optimizer(model)  # AdamW begins anew
        run.phase, run.step = "reinforce", 0


def draw_problems(problems: list[data.Problem], size: int, step: int, seed: int) -> list[data.Problem]:
    """The problems of one step, counted from 1. Each epoch has the data set in a new order, fixed by seed and epoch."""
    n, draws = len(problems), range((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {i // n for i in draws}}
    return [problems[orders[i // n][i % n]] for i in draws]


# ---- a run: its state, and what is due between its steps


@dataclass
class Run:
    """What a run works with, and how far it has come.

    It moves from boundary to boundary. Boundary k is the moment after step k's updates, counters and line of
    metrics.jsonl, which happen together or not at all (`advance`); boundary 0 stands before the first step.
    """

    settings: Settings
    model: Decoder
    tokenizer: Tokenizer
    train: list[data.Problem]
    tests: dict[str, list[data.Problem]]  # by split: test, and arith's wordings; or valid
    log: Log
    memory: str = ""  # what it will need

    def __post_init__(self):
        self.base = lora.fingerprint(self.model) if self.settings.lora_rank else None  # of what does not learn
        self.grade = grader(self.settings.grader)
        self.phase = "warmup" if self.settings.warmup_epochs else "reinforce"
        self.step = 0  # the last completed one of this phase
        self.whole = True  # False while a step becomes a boundary
        self.valid: list[int] | None = None  # SKIP: the valid layers; None: as they are measured
        self.nested: Nested | None = None  # SKIP: what was measured last
        self.saved: dict | None = None  # the newest checkpoint's state
        self.saved_at = time.monotonic()  # and when it was written, or the run began
        self.lock: FileLock | None = None  # on its folder

    @cached_property
    def optimizer(self) -> Optimizer:
        return Optimizer(self.model)

    def summary(self) -> str:
        """What runs, on what, and where it writes."""
        s = self.settings
        sizes = [(parameter.numel() / 1e6, parameter.requires_grad) for parameter in self.model.parameters()]
        learn = f"; {sum(n for n, learns in sizes if learns):,.4g} million of rank {s.lora_rank} learn"
        tests = "".join(f", {split} {len(problems):,}" for split, problems in self.tests.items())
        lines = {
            "model": f"{s.model or 'embedded'}, {sum(n for n, _ in sizes):,.4g} million weights, "
            f"{self.model.config.num_hidden_layers} layers{learn * bool(s.lora_rank)}",
            "machine": f"{self.model.device}, {s.dtype}, threads: {torch.get_num_threads()}",
            "memory": self.memory,
            "data": f"{s.dataset}, train {len(self.train):,}{tests} problems",
            "steps": f"{s.steps} of {s.prompts} × {s.samples} completions, gradient {s.gradient}, seed {s.seed}",
            "writes to": f"{self.log.folder}",
        }
        if self.log.last:
            end = self.phase == "reinforce" and self.step == s.steps
            lines["goes on"] = (
                "no further: it is complete; a larger --steps extends it"
                if end
                else (f"after step {self.step} of {self.last_step()} ({self.phase})")
            )
        if self.tokenizer.tells_date:
            lines["prompts say"] = f"{self.tokenizer.now:%d %B %Y}, to the end of the run"
        return "\n".join(f"{name:12}{value}" for name, value in lines.items())

    def steps_to_go(self) -> Iterable[int]:
        """The steps of this phase that are still to be taken."""
        last, bar = self.last_step(), {"desc": self.phase, "leave": False, "disable": distributed.silent()}
        return tqdm(range(self.step + 1, last + 1), initial=self.step, total=last, **bar)

    def last_step(self) -> int:
        """The number of this phase's last step."""
        s = self.settings
        return s.steps if self.phase == "reinforce" else math.ceil(s.warmup_epochs * len(self.train) / s.warmup_batch)

    def is_evaluated(self, step: int) -> bool:
        return step % self.settings.eval_every == 0 or step == self.settings.steps

    def advance(self, step: int, figures: dict, samples: list[dict]) -> None:
        """Completes a step: counts it and writes its line of metrics. To be called inside `uninterrupted`."""
        self.whole = False
        self.step = step
        line = self.log.write(self.phase, step, self.last_step(), figures, samples)
        self.whole = True
        if self.phase == "reinforce" or step % 20 == 0 or step in (1, self.last_step()):
            tqdm.write(line)  # after the boundary: a closed terminal undoes nothing

    def skip_mask(self, step: int) -> tuple[bool, ...]:  # SKIP
        """D3: the mask of a step. Before step 1, N + 1, 2N + 1, … (--measure-every) nested models are measured."""
        s, n_layers = self.settings, self.model.config.num_hidden_layers
        due, measured = step - (step - 1) % s.measure_every, self.valid is None or s.bypass != "identity"
        asked = None if s.skip_ratio == "auto" else round(s.skip_ratio * n_layers)
        if (asked is None or asked and measured) and (self.nested is None or self.nested.step != due):
            measure_nested(self, due, asked)
        n_skipped = self.nested.n_skipped if self.nested else asked
        valid = self.nested.layers.valid_layers(n_skipped) if self.nested and self.nested.layers else self.valid or []
        generator = torch.Generator().manual_seed((s.seed * 1_000_003 + step) % 2**32)  # a generator takes 32 bits
        return sample_mask(n_layers, n_skipped / n_layers, valid, generator)

    def state(self) -> dict:
        """What a resume needs besides the weights and what lies on disk already."""
        return {
            **{"format": FORMAT, "phase": self.phase, "step": self.step, "sizes": self.log.sizes},
            **{"threads": torch.get_num_threads(), "date": self.tokenizer.now.isoformat()},
            "problems": zlib.crc32(
                repr((self.train, self.tests)).encode()
            ),  # steps draw problems by number: the list must be the same
            **({"base": self.base} if self.settings.lora_rank else {}),
        }

    def save(self) -> None:
        """Writes a checkpoint of this boundary, unless there is one. FloatingPointError if it is not finite."""
        state = self.state()
        if from_first(lambda: self.saved == state):
            return
        if not self.optimizer.finite():
            raise FloatingPointError("the weights are not finite")

        def write(folder: Path) -> None:
            lora.merged(self.model).save_pretrained(folder)
            lora.save(self.model, folder / "adapter", self.settings.model or str(data.EMBEDDED))
            self.tokenizer.save(folder)
            nested.save(folder / "training" / "nested.safetensors", self.model.bypass, self.nested)  # SKIP

        with uninterrupted():
            checkpoint.save(self.log.folder, write, self.optimizer, state, self.settings.keep)
            self.saved, self.saved_at = state, time.monotonic()

    def restore(self, folder: Path) -> None:
        """Takes up what `save` wrote besides the model. Raises ValueError before anything is changed on disk."""
        now = self.state()
        state = checkpoint.load(folder, self.optimizer, now)
        self.phase, self.step = state["phase"], state["step"]
        self.tokenizer.now = datetime.fromisoformat(state["date"])
        self.model.bypass, self.nested = nested.read(folder / "training" / "nested.safetensors", self.model)  # SKIP
        if state["problems"] != now["problems"]:
            raise ValueError(f"--resume: the problems of {self.settings.dataset} are not those that the run began with")
        if state.get("base") != now.get("base"):
            raise ValueError(
                f"--resume: the model in {self.settings.model or data.EMBEDDED} is not the one that the run began with"
            )
        if state["threads"] != now["threads"]:
            warnings.warn(
                f"the run had {state['threads']} threads, now {now['threads']}: sums round otherwise", stacklevel=1
            )
        self.log.rewind(state["sizes"])
        self.saved = state if folder.name == "checkpoint" else None  # an older one has yet to become the newest


def at_boundary(run: Run) -> None:
    """What is due between two steps: an evaluation of the full model, with a line of its own, and a checkpoint."""
    s, step = run.settings, run.step
    hear_together()
    if anyone(time.monotonic() - run.saved_at > OFTEN):  # before an evaluation, which may take long
        run.save()
    if run.phase == "reinforce" and run.is_evaluated(step) and run.log.last != ("evaluate", step):
        everywhere = step in (0, s.steps)  # on arith's wordings as well
        splits = {name: some[: s.eval_problems] for name, some in run.tests.items() if everywhere or name != "wordings"}
        if step == 0:
            tqdm.write(f"evaluating before the first step, greedy and sampled: {', '.join(splits)}")
        with run.log.phase("evaluate"):
            figures, records = evaluate_splits(
                run.model, run.tokenizer, splits, s.max_new_tokens, s.temperature, s.prompts * s.samples, run.grade
            )
        samples = [example for mode, each in records.items() for example in examples(step, mode, each)]
        with uninterrupted():
            tqdm.write(run.log.write("evaluate", step, s.steps, figures, samples))
    if step % s.save_every == 0 or step == run.last_step():
        run.save()


def too_far(figures: dict) -> str:  # SKIP
    return (
        f"the full model would accept {figures['sequence_acceptance']:.0%} of the completions sampled without "
        f"{len(figures['skipped_layers'])} layers: too little to learn from; skip less (--skip-ratio)"
    )


def describe(rollout: Rollout, rewards: Tensor, advantages: Tensor, seconds: float) -> dict[str, float]:
    """The figures of one rollout, of all its completions, the silent groups' included."""
    tokens = int(rollout.mask.sum())
    return {
        "reward": rewards.mean().item(),
        "silent_groups": (advantages == 0).all(dim=1).float().mean().item(),
        "cut_off": (~rollout.ended).float().mean().item(),
        "mean_length": tokens / len(rollout.prompts),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
    }


def measure_nested(run: Run, step: int, n_skipped: int | None) -> None:  # SKIP
    """Measures the nested models on a few train problems and prints the result. For the weights of --model, before any
    step, it is cached in that folder, and the next run reads it from there.  n_skipped: None to measure it as well."""
    s = run.settings
    n = (nested.COUNT if n_skipped is None else nested.PROBE) + nested.FIT * (s.bypass != "identity")
    n = min(n, len(run.train))
    prompts = [run.tokenizer.encode_prompt(p.question) for p in draw_problems(run.train, n, step=1, seed=0)]
    full_prompt = s.prefill == "full"
    options = s.max_new_tokens, run.tokenizer.eos_ids, s.temperature, s.bypass, run.valid, n_skipped, full_prompt
    kept = None
    if s.model and step == 1 and not s.warmup_epochs and not s.adapter:
        kept = find_checkpoint(s.model) / "nested" / "measured.safetensors"
    if step == 1:
        tqdm.write(f"measuring nested models on {n} problems: which layers may go (bypass: {s.bypass})")
    with run.log.phase("measure"):
        stamp = nested.stamp(lora.merged(run.model), prompts, *options) if kept else ""
        bypass, found = from_first(lambda: read_kept(kept, run.model))
        if found and found.of == stamp:
            run.model.bypass, run.nested = bypass and bypass.to(run.model.device), replace(found, step=step)
        else:
            measured = nested.measure(run.model, prompts, *options)
            run.nested = from_first(lambda: Nested(step, *measured, stamp))
            for tensor in vars(run.model.bypass).values() if run.model.bypass else ():
                distributed.spread(tensor)
            distributed.by_first(lambda: keep(kept, run))
    if not run.nested.n_skipped:
        tqdm.write("without any layer too few completions would be accepted: none is skipped")
    elif run.nested.layers:
        tqdm.write(run.nested.layers.table(run.nested.n_skipped))
    elif s.skip_ratio == "auto":
        tqdm.write(f"{run.nested.n_skipped} of the {len(run.valid)} valid layers are skipped")


def read_kept(kept: Path | None, model: Decoder) -> tuple[nested.Bypass | None, Nested | None]:  # SKIP
    """What is cached beside --model, on the CPU; nothing where there is nothing, or it is broken."""
    try:
        bypass, found = nested.read(kept, model) if kept else (None, None)
        return bypass and bypass.to("cpu"), found
    except ValueError as error:
        warnings.warn(f"{error}; measured again", stacklevel=1)
        return None, None


def keep(kept: Path | None, run: Run) -> None:  # SKIP
    try:
        if kept:
            nested.save(kept, run.model.bypass, run.nested)
    except OSError as error:
        warnings.warn(f"what was measured cannot be kept beside the model: {error}", stacklevel=1)


# ---- how a run begins and ends


def set_up(given: dict, resume: bool = False) -> Run:
    """Reads all that the user named, before any slow work and any writing. Raises ValueError or OSError."""
    s = settings_of(given) if resume else Settings(**given).decided()
    if s.adapter and not resume:
        rank, _ = lora.read_config(Path(s.adapter))
        if s.model and Path(s.model).resolve() in Path(s.adapter).resolve().parents:
            raise ValueError(f"--adapter {s.adapter} is merged into --model {s.model} already; expected its base there")
        if s.lora_rank not in (0, rank):
            raise ValueError(f"--lora-rank is {s.lora_rank}, but {s.adapter} has rank {rank}; leave the flag out")
        s = replace(s, lora_rank=rank)
    out = Path(os.path.expanduser(s.out or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}"))
    distributed.join(s.device)
    if s.prompts < distributed.world():
        raise ValueError(
            f"--prompts is {s.prompts}, for {distributed.world()} processes; expected one for each at least"
        )
    if not resume:
        checkpoint.refuse_a_run(out)
    lock = checkpoint.claim(out) if resume else None
    if not s.model and not data.EMBEDDED.is_dir():
        raise FileNotFoundError(
            f"{data.EMBEDDED}: the embedded model is not there; `python -m docs.tiny` makes it again"
        )
    with distributed.first_alone():
        train, tests = load_problems(s)
    saved = checkpoint.checkpoints(out) if resume else []
    run = restored(s, train, tests, out, saved) if saved else load_run(s, train, tests, out)
    if resume and not saved:  # it was killed before its first checkpoint
        if (out / "metrics.jsonl").exists() and '"reinforce"' in (out / "metrics.jsonl").read_text(encoding="utf-8"):
            raise ValueError(f"--resume: {out} has steps in its metrics.jsonl, but no checkpoint to go on from")
        run.log.rewind(run.log.sizes)
    if not resume:
        run.log.folder, lock = checkpoint.claim_new(out, any_name=not s.out)
    run.lock = lock
    distributed.by_first(lambda: write_settings(s, run.log.folder))
    if anyone(not (run.log.folder / "config.json").is_file()):
        raise ValueError(
            f"--out {run.log.folder}: all nodes have to see the same folder; expected one on a shared drive"
        )
    return run


def load_run(s: Settings, train: list, tests: dict, out: Path, saved: Path | None = None) -> Run:
    """A run at its beginning, with the model of --model, or with what a checkpoint holds of it: the model, or adapters
    of the one of --model."""
    questions = [problem.question for problems in (train, *tests.values()) for problem in problems]
    memory = ""

    def fits(outline: Decoder, tokenizer: Tokenizer) -> None:
        nonlocal memory
        if s.lora_rank:
            lora.add(outline, s.lora_rank)
        longest = check_room(outline, tokenizer, questions, s.max_new_tokens)
        memory = check_memory(outline, s, longest, pick_device(distributed.join(s.device)))

    base = saved if saved and not s.lora_rank else s.model or data.EMBEDDED
    with distributed.first_alone():
        model, tokenizer = load_model(base, s.dtype, distributed.join(s.device), s.prompt_template or None, fits)
        if s.adapter or (saved and s.lora_rank):
            lora.load(model, saved / "adapter" if saved else Path(s.adapter))
        elif s.lora_rank:
            lora.add(model, s.lora_rank, seed=s.seed)
        if saved and s.lora_rank:
            tokenizer = Tokenizer(saved, s.prompt_template or None)  # as it was when the run began
    tokenizer.now = from_first(lambda: tokenizer.now)
    model.gradient_checkpointing = s.gradient_checkpointing
    run = Run(s, model, tokenizer, train, tests, Log(out), memory)
    set_valid_layers(run)  # SKIP
    return run


def restored(s: Settings, train: list, tests: dict, out: Path, saved: list[Path]) -> Run:
    """The run as its newest whole checkpoint left it. Broken newer ones are renamed, else a later save would keep them
    in place of whole ones. If there is no whole one, raises the error of the newest."""
    errors = []
    for folder in saved:
        run = error = None
        try:
            run = load_run(s, train, tests, out, folder)
            run.restore(folder)
        except (ValueError, FileNotFoundError) as this:
            error = this.with_traceback(None)  # which would hold on to the model
        if anyone(error is not None):
            errors.append(error or ValueError(f"{folder}: another process could not read it"))
            continue
        if errors:
            warnings.warn(f"{errors[0]}; going on from {folder}", stacklevel=1)
            distributed.by_first(lambda: checkpoint.set_aside(saved[: len(errors)]))
        return run
    raise errors[0]


def set_valid_layers(run: Run) -> None:  # SKIP
    """Reads --valid-layers, and refuses a ratio that they do not allow."""
    s, n_layers = run.settings, run.model.config.num_hidden_layers
    run.valid = None if s.valid_layers == "measured" else parse_valid_layers(s.valid_layers, n_layers)
    if run.valid == [] and s.skip_ratio:
        raise ValueError(f"--valid-layers {s.valid_layers} leaves none of the model's {n_layers} layers to skip")
    if s.skip_ratio != "auto":
        sample_mask(n_layers, s.skip_ratio, range(n_layers) if run.valid is None else run.valid, torch.Generator())


def load_problems(s: Settings) -> tuple[list[data.Problem], dict[str, list[data.Problem]]]:
    """The problems to train on, and those to test with by split."""
    if s.test_file and s.eval_split == "valid":
        raise ValueError(f"--test-file {s.test_file} with --eval-split valid; expected one of the two")
    if s.test_file and not data.is_file(s.test_file):
        raise ValueError(f"--test-file is {s.test_file!r}; expected a file *.jsonl or *.json")
    if s.test_file:
        splits = {"test": data.load(s.test_file, "all")}
        tested = {problem.question for problem in splits["test"]}
        train = data.load(s.dataset, "all" if data.is_file(s.dataset) else "train", s.data_dir or None)
        every, train = len(train), [problem for problem in train if problem.question not in tested]
        if len(train) < every:
            warnings.warn(f"{every - len(train):,} problems of --test-file are not trained on", stacklevel=1)
        if not train:
            raise ValueError(
                f"--test-file {s.test_file}: all problems of {s.dataset} are in it, none is left to train on"
            )
    else:
        splits = {split: data.load(s.dataset, split, s.data_dir or None) for split in data.splits(s.dataset)}
        train = splits.pop("train")
    if s.eval_split == "valid":  # neither trained on nor part of the test split
        splits = {"valid": data.load(s.dataset, "valid", s.data_dir or None)}
        train = train[: -len(splits["valid"])]
    unsolved = sum(not problem.rationale for problem in train)
    if s.warmup_epochs and unsolved:
        raise ValueError(
            f"--warmup-epochs is {s.warmup_epochs}, but {unsolved:,} problems of {s.dataset} have no solution to learn "
            "from; expected a 'solution' in each record, or no --warmup-epochs"
        )
    for split, problems in splits.items():
        if len(problems) < FEW:
            warnings.warn(
                f"{split}: {len(problems)} problems, which tell little: see the ± of an accuracy", stacklevel=1
            )
    return train, splits


LESS_MEMORY = {
    "sample": "--samples, --prompts or --max-new-tokens",
    "update": "--micro-batch-tokens or --max-new-tokens, or try --gradient-checkpointing",
    "measure": "--max-new-tokens, or measure nothing (--bypass identity --valid-layers border:1 --skip-ratio 0.3)",
    "evaluate": "--samples or --prompts, whose product is the size of a batch, or --max-new-tokens",
}


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 2 for a wrong flag or file, 1 for trouble of the machine or the numbers, 130 and 143 for
    Ctrl-C and SIGTERM."""
    try:
        run = set_up(*parse(arguments, __doc__))
    except (Exception, KeyboardInterrupt) as error:
        return complain(error)
    with terminable():
        try:
            status, hopeful = work(run)
        except (OSError, KeyboardInterrupt) as error:  # the last checkpoint could not be written, or Ctrl-C came twice
            status, hopeful = complain(error), True
        finally:
            if run.lock:
                run.lock.release()
    with suppress(BrokenPipeError):
        saved = run.saved and f"{'warm-up ' * (run.saved['phase'] == 'warmup')}step {run.saved['step']}"
        print(f"checkpoint: {run.log.folder / 'checkpoint'} (after {saved})" if saved else "checkpoint: none")
        if status and hopeful:
            python = "python" if alone() else f"torchrun --nproc-per-node {distributed.world()}"
            out = [str(run.log.folder)]
            out = subprocess.list2cmdline(out) if os.name == "nt" else shlex.join(out)
            print(f"go on with: {python} train.py --out {out} --resume", flush=True)
    if status == 0:
        distributed.leave()
    return 1 if status == 2 else status  # 2 is for what the user gave, which set_up has checked


def work(run: Run) -> tuple[int, bool]:
    """The run itself. Whatever ends it leaves its last boundary in DIR/checkpoint; trouble of the numbers leaves the
    checkpoint before. Returns the exit status, and whether to go on may help."""
    try:
        tqdm.write(run.summary())
        if run.phase == "warmup":
            warm_up(run)
        reinforce(run)
        distributed.by_first(lambda: print_report(run.log.folder))
        return 0, True
    except (FloatingPointError, OverflowError) as error:  # the last boundary would lead to it again: not saved
        return complain(error), False
    except BaseException as error:
        together = alone() or isinstance(error, KeyboardInterrupt)  # an error is of one process, and saving takes all
        if out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # what they hold is room to save in
        try:
            if together and run.whole and run.optimizer.whole and run.optimizer.finite():
                run.save()
        except Exception as second:
            if not out_of_memory(second):
                raise
            warnings.warn("no memory is left to save the last boundary: the checkpoint before it stays", stacklevel=1)
        phase = run.log.phase_now or "set-up"
        lower = LESS_MEMORY.get(phase, "the size of the model")
        weights = f"--model {run.log.folder / 'checkpoint'} to keep the weights"
        advice = f"lower {lower}, in a new run, with {weights} (phase: {phase})"
        return complain(error, advice), True


if __name__ == "__main__":
    sys.exit(main())
