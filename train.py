"""Nested-ReFT: reinforced fine-tuning on maths problems with completions sampled from a nested model.

    python train.py --dataset svamp --skip-ratio 0.3

Each step draws a skip mask, samples from the model without the skipped layers, scores the answers, and moves the *full*
model along a policy gradient that is corrected for having been sampled elsewhere (E1-E8, losses.py): `reinforce` and,
directly under it, `update`. `warm_up` is supervised learning on worked solutions, before it. Then comes the run: its
state, what it measures on the way, how it begins and how it ends.

Every random number is a function of (seed, step) alone. So a checkpoint holds the weights, AdamW's moments, what nested
models are made from, and how far the run has come (`Run.state`); `--resume` goes on as if it had never stopped.
"""

import json
import math
import os
import sys
import warnings
import zlib
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
import nested
from evaluate import compare_with_full, evaluate_splits, score
from losses import diagnostics, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss, supervised_loss
from model import Decoder
from nested import Measured, Watch
from report import print_report
from rollout import (
    Rollout,
    completion_hidden,
    completion_logprobs,
    cut_by_tokens,
    generate,
    micro_batches,
    pack,
    score_states,
)
from skip import parse_valid_layers, sample_mask
from support import checkpoint
from support.checkpoint import hear_signals, terminable, uninterrupted
from support.graders import grader
from support.log import Log, complain, examples, read, readable
from support.optimizer import Optimizer
from support.pretrained import check_room, find_checkpoint, load_model
from support.settings import Settings, parse, settings_of
from support.tokenizer import Tokenizer

FAR = 0.5  # acceptance below which a warning is due


def reinforce(run: "Run") -> None:
    """The method: batches, each sampled under a skip mask of its own, each one step of the full model."""
    s, model, log = run.settings, run.model, run.log
    if s.skip_ratio:  # SKIP
        measure_if_due(run)  # SKIP
    finish_step(run)  # step 0 is nothing but its evaluation; or a step whose evaluation was interrupted
    for step in tqdm(range(run.step + 1, s.steps + 1), desc="steps", leave=False, disable=None):
        problems = draw_problems(run.train, s.prompts, step, s.seed)
        prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
        if s.skip_ratio:  # SKIP
            measure_if_due(run)  # SKIP
        skip = run.skip_mask(run.watch.n_skipped, step)  # SKIP

        seed = s.seed * 2**32 + step * s.prompts
        options = s.samples, s.max_new_tokens, run.tokenizer.eos_ids, s.temperature
        with log.phase("sample"):
            rollout = generate(model, prompts, *options, skip=skip, seed=seed)
        with log.phase("score"):
            records = score(run.tokenizer, problems, rollout, run.grade)
            rewards = torch.tensor([[record["reward"] for record in group] for group in records])  # (P, G)
        advantages = group_advantages(rewards, s.advantage)  # (P, G)
        figures = describe(rollout, rewards, advantages, log.seconds["seconds_sample"])
        figures["skipped_layers"] = [layer for layer, skipped in enumerate(skip) if skipped]  # SKIP
        if run.is_evaluated(step) and any(skip):  # SKIP
            full = partial(generate, model, prompts, *options, seed=seed)  # SKIP
            with log.phase("evaluate"):  # SKIP
                figures |= compare_with_full(run.tokenizer, problems, full, run.grade)  # SKIP

        lr = s.lr * min(1.0, step / max(1, s.lr_warmup_steps))
        with log.phase("update"), uninterrupted():
            figures |= update(model, run.optimizer, rollout, advantages.flatten(), s, lr)
            run.advance(step, figures, examples(step, "nested, sampled", records) if run.is_evaluated(step) else [])
        finish_step(run)
    if s.steps and not any(row["stepped"] for row in read(log.folder)):
        print("no batch had a signal, nothing was learned: warm up first (--warmup-epochs) or skip less (--skip-ratio)")


def update(
    model: Decoder, optimizer: Optimizer, rollout: Rollout, advantages: Tensor, s: Settings, lr: float
) -> dict[str, float]:
    """One step of the full model on a batch, N completions with advantages (N,), by micro-batches of n.

    Completions without an advantage have no gradient: they go forward only, for the figures, which are of the whole
    batch, as Z is. FloatingPointError or OverflowError, before any weight has moved, if the numbers are not finite.
    """
    z = normaliser(rollout.mask, s.normaliser)
    log_rho, entropy = torch.zeros_like(rollout.logprobs), torch.zeros_like(rollout.logprobs)  # (N, T)
    advantages, total = advantages.to(log_rho), 0.0
    for rows, has_signal in micro_batches(rollout, advantages, s.micro_batch_tokens):
        hear_signals()  # nothing has changed yet: Ctrl-C need not wait for the whole step
        prompts, tokens, mask = [rollout.prompts[row] for row in rows], rollout.tokens[rows], rollout.mask[rows]
        with torch.set_grad_enabled(has_signal):
            logprobs, entropy[rows] = completion_logprobs(model, prompts, tokens, mask, s.temperature)  # log π, (n, T)
        log_rho[rows] = finite("the model's log-probabilities are", log_ratio(logprobs, rollout.logprobs[rows], mask))
        if has_signal:
            w = gradient_weights(s.gradient, log_rho[rows], mask, s.cap or None, s.retrace_lambda)  # (n, T)
            loss = finite("the loss is", policy_loss(logprobs, w, advantages[rows], mask, z))
            loss.backward()
            optimizer.collect_gradients()
            total += loss.item()
    stepped = bool(advantages.any())
    figures = {"loss": total if stepped else None, "entropy": entropy[rollout.mask].mean().item()}
    figures |= {"lr": lr, "stepped": stepped} | diagnostics(log_rho, rollout.mask)
    return figures | {"grad_norm": optimizer.step(lr, s.max_grad_norm) if stepped else None}


def finite(what: str, x: Tensor) -> Tensor:
    """x itself. FloatingPointError if it is not finite."""
    if not x.isfinite().all():
        raise FloatingPointError(f"{what} not finite")
    return x


def warm_up(run: "Run") -> None:
    """Supervised learning of the train split's rationales."""
    s, model, steps = run.settings, run.model, run.last_step()
    if s.layer_dropout:  # SKIP
        measure_if_due(run)  # SKIP
    finish_step(run)
    for step in tqdm(range(run.step + 1, steps + 1), desc="warm-up", leave=False, disable=None):
        prompts, completions = worked(run, draw_problems(run.train, s.warmup_batch, step, s.seed))
        tokens, mask = pack(completions, model.device)
        n_skipped = round(s.layer_dropout * min(1, 2 * step / steps) * model.config.num_hidden_layers)  # SKIP
        skip = run.skip_mask(n_skipped, step)  # SKIP
        loss, accepted, z = 0.0, 0.0, normaliser(mask)
        with run.log.phase("update"):
            if n_skipped and step % 20 == 0:  # SKIP: the model has moved
                some = draw_problems(run.train, min(nested.FIT, len(run.train)), step, s.seed)  # SKIP
                model.bypass = nested.bypass_of(model, s.bypass, *worked(run, some))  # SKIP
            lengths = mask.sum(dim=1).tolist()
            for rows in cut_by_tokens(list(range(len(prompts))), prompts, lengths, s.micro_batch_tokens):
                batch = model, [prompts[row] for row in rows], tokens[rows], mask[rows]
                states = completion_hidden(*batch)
                logprobs, _ = score_states(model, states, *batch[2:])
                part = supervised_loss(logprobs, mask[rows], z)
                if n_skipped:  # SKIP: the nested model learns to write what the full one would
                    other, share = completion_hidden(*batch, skip), len(states) / z  # SKIP
                    kl, overlap = nested.divergence(states.detach(), other, model.lm_head.weight)  # SKIP
                    part, accepted = part + share * kl, accepted + share * overlap.item()  # SKIP
                part.backward()
                run.optimizer.collect_gradients()
                loss += part.item()
            lr = s.warmup_lr * min(1.0, step / max(1, steps // 20), 1 - (step - 1) / steps)  # up in 5 %, then down
            figures = {"loss": loss, "lr": lr, "stepped": True, "tokens": int(mask.sum())}
            if n_skipped:  # SKIP
                figures |= {"skipped_layers": [i for i, skipped in enumerate(skip) if skipped], "acceptance": accepted}
            with uninterrupted():
                figures["grad_norm"] = run.optimizer.step(lr, s.max_grad_norm)
                run.advance(step, figures, [])
        finish_step(run)
    with uninterrupted():
        run.measured = model.bypass = None  # SKIP: measured on other weights
        run.optimizer = Optimizer(model)  # AdamW begins anew
        run.phase, run.step, run.figures = "reinforce", 0, {}


def worked(run: "Run", problems: list[data.Problem]) -> tuple[list[list[int]], list[list[int]]]:
    """The problems' prompts, and their rationales as completions."""
    prompts = [run.tokenizer.encode_prompt(problem.question) for problem in problems]
    return prompts, [run.tokenizer.encode_completion(problem.rationale) for problem in problems]


def draw_problems(problems: list[data.Problem], size: int, step: int, seed: int) -> list[data.Problem]:
    """The problems of step 1, 2, …: the data set in a new order each epoch; a function of the seed and the step."""
    n, draws = len(problems), range((step - 1) * size, step * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(n) for epoch in {i // n for i in draws}}
    return [problems[orders[i // n][i % n]] for i in draws]


# ---- a run: its state, and what it measures on the way


@dataclass
class Run:
    """What a run works with, and how far it has come."""

    settings: Settings
    model: Decoder
    tokenizer: Tokenizer
    train: list[data.Problem]
    tests: dict[str, list[data.Problem]]  # by split: test, and arith's wordings
    valid: list[int] | None  # SKIP: the valid layers; None: as they are measured
    log: Log

    def __post_init__(self):
        self.optimizer = Optimizer(self.model)
        self.grade = grader(self.settings.grader)
        self.phase = "warmup" if self.settings.warmup_epochs else "reinforce"
        self.step = 0  # the last completed one of this phase
        self.figures: dict | None = None  # of that step, until they are written
        self.measured: Measured | None = None  # SKIP: by `measure_nested`
        ratio, n_layers = self.settings.skip_ratio, self.model.config.num_hidden_layers
        self.watch = Watch(1 if ratio == "auto" else round(ratio * n_layers))  # SKIP: how many layers to skip

    def last_step(self) -> int:
        """The number of this phase's last step."""
        s = self.settings
        return s.steps if self.phase == "reinforce" else math.ceil(s.warmup_epochs * len(self.train) / s.warmup_batch)

    def is_evaluated(self, step: int) -> bool:
        return step % self.settings.eval_every == 0 or step == self.settings.steps

    def skip_mask(self, n_skipped: int, step: int) -> tuple[bool, ...]:  # SKIP
        """D3 with that many layers: the mask of a step."""
        n_layers = self.model.config.num_hidden_layers
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + step) % 2**32)  # it reads 32 bits
        valid = self.valid
        if valid is None:
            valid = self.measured.valid_layers(n_skipped) if self.measured else []
        return sample_mask(n_layers, n_skipped / n_layers, valid, generator)

    def advance(self, step: int, figures: dict, samples: list[dict]) -> None:
        """Records that the weights have moved; to be called inside `uninterrupted`, since half a step cannot be resumed
        from."""
        self.step, self.figures, self.log.samples = step, figures, samples
        if self.phase == "reinforce":  # SKIP
            self.watch.see(figures["acceptance"])
            if self.settings.skip_ratio == "auto":
                most = len(self.valid) if self.measured is None else self.measured.most
                self.watch.adapt(self.settings.min_acceptance, most)
            if self.watch.batches == 4 and self.watch.mean < FAR:
                warnings.warn(
                    f"the full model would accept {self.watch.mean:.0%} of what is sampled without "
                    f"{self.watch.n_skipped} layers: too little to learn from; skip less (--skip-ratio), or warm up "
                    "with --layer-dropout",
                    stacklevel=1,
                )

    def state(self) -> dict:
        """What a resume needs besides the weights and what lies on disk already."""
        return {
            **{"phase": self.phase, "step": self.step, "figures": self.figures, "watch": asdict(self.watch)},
            **{"samples": self.log.samples, "sizes": self.log.sizes, "threads": torch.get_num_threads()},
            "problems": zlib.crc32(repr((self.train, self.tests)).encode()),  # the steps draw them by number
        }

    def save(self) -> None:
        """Writes a checkpoint of this step, unless there is one."""
        if self.log.saved == self.checkpoint_name():
            return

        def write(folder: Path) -> None:
            self.model.save_pretrained(folder)
            self.tokenizer.save(folder)
            nested.save(folder, self.model.bypass, self.measured, stamp(self))  # SKIP

        with uninterrupted():
            checkpoint.save(self.log.folder, write, self.optimizer, self.state(), self.settings.keep)
            self.log.saved = self.checkpoint_name()

    def checkpoint_name(self, name: str = "checkpoint") -> str:
        return f"{self.log.folder / name} (after {'warm-up ' * (self.phase == 'warmup')}step {self.step})"

    def restore(self, folder: Path) -> None:
        """Takes up what `save` wrote besides the model. Raises ValueError before anything is changed on disk."""
        now = self.state()
        state = checkpoint.load(folder, self.optimizer, now.keys())
        self.phase, self.step, self.figures = state["phase"], state["step"], state["figures"]
        self.watch = replace(self.watch, **state["watch"])  # SKIP
        self.log.samples = state["samples"]
        self.model.bypass, self.measured = nested.read(folder, self.model)  # SKIP
        if state["problems"] != now["problems"]:
            raise ValueError(f"--resume: the problems of {self.settings.dataset} are not those that the run began with")
        if state["threads"] != now["threads"]:
            warnings.warn(
                f"the run had {state['threads']} threads, now {now['threads']}: sums round otherwise", stacklevel=1
            )
        self.log.rewind(state["sizes"])
        self.log.saved = self.checkpoint_name(folder.name)


def finish_step(run: Run) -> None:
    """What follows a step: the evaluation, the line of metrics.jsonl, the checkpoint, each if it is due."""
    s, step, figures, samples = run.settings, run.step, run.figures, []
    if figures is None:  # written already
        return
    if run.phase == "reinforce" and run.is_evaluated(step):
        accuracies, samples = test_accuracies(run, step)
        figures = figures | accuracies
    with uninterrupted():
        run.log.samples += samples
        line = readable(run.phase, step, run.last_step(), figures, run.log.seconds.get("seconds_update"))
        run.log.write(line, phase=run.phase, step=step, **figures)
        run.figures = None
    if step % s.save_every == 0 or step == run.last_step():
        if not run.optimizer.finite():
            raise FloatingPointError("the weights are not finite")
        run.save()


def test_accuracies(run: Run, step: int) -> tuple[dict[str, float], list[dict]]:
    """Accuracy of the full model on the test split, before and after the run on all others too; and a few answers."""
    s = run.settings
    splits = run.tests if step in (0, s.steps) else {"test": run.tests["test"]}
    splits = {split: problems[: s.eval_problems] for split, problems in splits.items()}
    with run.log.phase("evaluate"):
        figures, records = evaluate_splits(
            run.model, run.tokenizer, splits, s.max_new_tokens, s.temperature, s.prompts * s.samples, run.grade
        )
    return figures, [example for mode, each in records.items() for example in examples(step, mode, each)]


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


# SKIP: what nested models are made from


def measure_if_due(run: Run) -> None:  # SKIP
    """Measures nested models if they are measured at all and have not been, or the model has moved away from what was
    measured; prints the layers. What the weights of --model themselves give is kept in its folder."""
    s, layers, bypass = run.settings, run.valid is None, run.settings.bypass != "identity"
    missing = (layers and run.measured is None) or (bypass and run.model.bypass is None)
    if not missing and not ((layers or bypass) and run.watch.drifted()):
        return
    as_loaded = s.model and run.step == 0 and run.phase == ("warmup" if s.warmup_epochs else "reinforce")
    folder, found = find_checkpoint(s.model) if as_loaded else None, None
    if folder:
        found = nested.read(folder, run.model, stamp(run))
    if found and any(found):
        run.model.bypass, run.measured = found
    else:
        with run.log.phase("evaluate"):
            measure_nested(run)
        if folder:
            try:
                nested.save(folder, run.model.bypass, run.measured, stamp(run))
            except OSError as error:
                warnings.warn(f"what was measured cannot be kept beside the model: {error}", stacklevel=1)
    n_skipped = run.watch.n_skipped
    if run.measured:
        if s.skip_ratio == "auto" and run.watch.batches == 0:
            together = run.measured.together
            n_skipped = next((k for k, kept in enumerate(together) if kept < s.min_acceptance), len(together))
        print(run.measured.table(n_skipped))
    run.watch = Watch(n_skipped)


def measure_nested(run: Run) -> None:  # SKIP
    """The bypass and, where they are not given, the valid layers, on a few problems of the train split and the model's
    own completions of them; before a warm-up, which is to change what it writes, on their rationales."""
    s, model, n = run.settings, run.model, nested.PROBE
    problems = draw_problems(run.train, min(n + nested.FIT, len(run.train)), step=1, seed=0)  # the same for every seed
    prompts, completions = worked(run, problems)
    if run.phase == "reinforce":
        completions = nested.own_completions(model, prompts, s.max_new_tokens, run.tokenizer.eos_ids, s.temperature)
    completions = [row[: nested.LOOK] for row in completions]
    model.bypass = nested.bypass_of(model, s.bypass, prompts[-nested.FIT :], completions[-nested.FIT :])
    if run.valid is None:
        run.measured = nested.measure_layers(model, prompts[:n], completions[:n], s.temperature)


def stamp(run: Run) -> str:  # SKIP
    """What a measurement depends on: another one beside a checkpoint is not this run's."""
    s = run.settings
    settings = s.dataset, s.valid_layers, s.bypass, s.temperature, s.max_new_tokens, s.prompt_template
    return nested.stamp(run.model, run.phase, *settings)


# ---- how a run begins and ends


def set_up(given: dict, resume: bool = False) -> Run:
    """Reads all that the user named, before any slow work and any writing. Raises ValueError or OSError."""
    s = settings_of(given) if resume else Settings(**given).decided()
    out = Path(os.path.expanduser(s.out or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}"))
    if not resume and ((out / "metrics.jsonl").exists() or (out / "checkpoint").exists()):
        raise FileExistsError(f"--out {out} already holds a run; name another folder, or go on with it (--resume)")
    if not s.model and not data.EMBEDDED.is_dir():
        raise FileNotFoundError(
            f"{data.EMBEDDED}: the embedded model is not there; `python -m docs.tiny` makes it again"
        )
    newest = checkpoint.newest_checkpoint(out) if resume else None
    problems = {split: data.load(s.dataset, split, s.data_dir or None) for split in data.splits(s.dataset)}
    unsolved = sum(not problem.rationale for problem in problems["train"])
    if s.warmup_epochs and unsolved:
        raise ValueError(
            f"--warmup-epochs is {s.warmup_epochs}, but {unsolved:,} problems of {s.dataset} have no solution to learn "
            "from; expected a 'solution' in each record, or --warmup-epochs 0"
        )
    model, tokenizer = load_model(newest or s.model or data.EMBEDDED, s.dtype, s.device, s.prompt_template or None)
    model.gradient_checkpointing = s.gradient_checkpointing
    n_layers = model.config.num_hidden_layers
    valid = None if s.valid_layers == "measured" else parse_valid_layers(s.valid_layers, n_layers)  # SKIP
    for ratio in {s.skip_ratio, s.layer_dropout} - {"auto"}:  # SKIP: refuses what cannot be
        sample_mask(n_layers, ratio, range(n_layers) if valid is None else valid, torch.Generator())
    questions = [problem.question for split in problems.values() for problem in split]
    check_room(model, tokenizer, questions, s.max_new_tokens)
    run = Run(s, model, tokenizer, problems.pop("train"), problems, valid, Log(out))
    if newest:
        run.restore(newest)
        return run
    if run.phase == "reinforce":
        run.figures = {}  # step 0 is nothing but its evaluation
    if resume:  # it was killed before its first checkpoint
        run.log.rewind(run.log.sizes)
        return run
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(asdict(s), indent=2) + "\n", encoding="utf-8")
    return run


LESS_MEMORY = {
    "sample": "--samples, --prompts or --max-new-tokens",
    "update": "--micro-batch-tokens or --max-new-tokens, or try --gradient-checkpointing",
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
            status = work(run)
        except OSError as error:  # a full disk, a folder that went away
            complain(error)
            status = 1
        except KeyboardInterrupt as error:  # a second one, while the checkpoint of the first was written
            status = complain(error)
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
        if run.optimizer.whole and run.optimizer.finite():
            run.save()
        if isinstance(error, KeyboardInterrupt):
            print("interrupted; --resume goes on from here", file=sys.stderr)
        lower = LESS_MEMORY.get(log.phase_now, "the size of the model")
        return complain(error, f"lower {lower} (it ran out in the phase: {log.phase_now or 'set-up'})")


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    sys.exit(main())
