"""A run: its state, what is due between its steps, how it begins, is resumed, and ends.

train.py holds the method and hands it to `launch`. Every random number is a function of (seed, step), or fixed. So a
checkpoint holds the weights, AdamW's moments, what nested models are made from, and how far the run has come
(`Run.state`); `--resume` continues as if it had never stopped.
"""

import math
import os
import sys
import textwrap
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm

import data
import nested  # SKIP
from evaluate import evaluate_splits, none_correct
from model import Decoder
from report import print_report
from support import checkpoint, distributed, lora, provenance
from support.distributed import anyone, from_rank_0, single_process
from support.graders import make_grader
from support.log import Log, examples, out_of_memory, read, report_error
from support.memory import advice
from support.memory import check as check_memory
from support.optimizer import Optimizer
from support.pretrained import check_context, load_model, load_outline, pick_device
from support.settings import Settings, command_to_resume, parse, settings_of, write_settings
from support.signals import hear_no_more, raise_together, terminable, uninterrupted
from support.tokenizer import Tokenizer

SAVE_SECONDS = 600  # between checkpoints, at most
FORMAT = 5  # of a checkpoint's state


@dataclass
class Run:
    """What a run works with, and how far it has come.

    It moves from boundary to boundary. Boundary k is the moment after step k's updates, counters and line of
    metrics.jsonl, which happen together or not at all (`record_step`); boundary 0 stands before the first step.
    """

    settings: Settings
    model: Decoder
    tokenizer: Tokenizer
    train: list[data.Problem]
    test_splits: dict[str, list[data.Problem]]  # test, and arith's wordings; or valid
    log: Log
    memory_report: str = ""  # what it will need

    def __post_init__(self):
        s = self.settings
        self.grader = make_grader(s.grader)
        self.optimizer = Optimizer(self.model)
        self.base = lora.fingerprint(self.model) if s.lora_rank else None  # of what does not learn
        self.nested = nested.NestedModels(self.model, self.tokenizer, self.train, s)  # SKIP
        self.phase = "warmup" if s.warmup_epochs else "reinforce"
        self.step = 0  # the last completed one of this phase
        self.restored = False  # from a checkpoint
        self.saved: dict | None = None  # the newest checkpoint's state
        self.saved_at = time.monotonic()  # and when it was written, or the run began
        self.lock: FileLock | None = None  # on its folder

    @property
    def at_boundary(self) -> bool:
        """True if weights, moments, counters and files agree. False from the first move of the weights in a step until
        its line of metrics is written."""
        return self.optimizer.consistent

    def summary(self) -> str:
        """What runs, on what, and where it writes."""
        s = self.settings
        sizes = [(parameter.numel() / 1e6, parameter.requires_grad) for parameter in self.model.parameters()]
        learn = f"; {sum(n for n, learns in sizes if learns):,.4g} million of rank {s.lora_rank} learn"
        tests = "".join(f", {split} {len(problems):,}" for split, problems in self.test_splits.items())
        lines = {
            "model": f"{s.model or 'embedded'}, {sum(n for n, _ in sizes):,.4g} million weights, "
            f"{self.model.config.num_hidden_layers} layers{learn * bool(s.lora_rank)}",
            "machine": f"{self.model.device}, {s.dtype}, threads: {torch.get_num_threads()}",
            "memory": self.memory_report,
            "data": f"{s.dataset}, train {len(self.train):,}{tests} problems",
            "steps": f"{s.steps} of {s.prompts} × {s.samples} completions, gradient {s.gradient}, seed {s.seed}",
            "writes to": f"{self.log.folder}",
        }
        if self.log.last:
            kind = "warm-up step" if self.phase == "warmup" else "step"
            lines["continues"] = f"after {kind} {self.step} of {self.final_step()}"
            if self.phase == "reinforce" and self.step == s.steps:
                lines["continues"] = "not: already complete; raise --steps to continue"
        if self.tokenizer.tells_date:
            lines["prompts say"] = f"{self.tokenizer.now:%d %B %Y}, to the end of the run"
        wrapped = {"width": 80, "subsequent_indent": " " * 12, "break_long_words": False, "break_on_hyphens": False}
        return "\n".join(textwrap.fill(f"{name:12}{value}", **wrapped) for name, value in lines.items())

    # ---- steps

    def steps_to_go(self) -> Iterable[int]:
        """The steps of this phase that are still to be taken."""
        last, bar = self.final_step(), {"desc": self.phase, "leave": False, "disable": distributed.no_bar()}
        return tqdm(range(self.step + 1, last + 1), initial=self.step, total=last, **bar)

    def final_step(self) -> int:
        """The number of this phase's last step."""
        s = self.settings
        return s.steps if self.phase == "reinforce" else math.ceil(s.warmup_epochs * len(self.train) / s.warmup_batch)

    def is_evaluated(self, step: int) -> bool:
        return step % self.settings.eval_every == 0 or step == self.settings.steps

    def completing_step(self):
        """A context for a step's updates and `record_step`. Ctrl-C or SIGTERM to a single process ends it at once if no
        weight has moved, and waits for the boundary from then on. Then `run_to_end` saves the last boundary."""
        return uninterrupted(unless=lambda: self.at_boundary)

    def record_step(self, step: int, figures: dict, samples: list[dict]) -> None:
        """Completes a step: counts it and writes its line of metrics. To be called in `completing_step`."""
        self.optimizer.consistent = False
        self.step = step
        line = self.log.write(self.phase, step, self.final_step(), figures, samples)
        self.optimizer.consistent = True
        if self.phase == "reinforce" or step % 20 == 0 or step in (1, self.final_step()):
            tqdm.write(line)  # after the boundary: a closed terminal undoes nothing
        if self.phase == "reinforce" and step == 1:  # SKIP
            nested.warn_if_too_far(figures)

    def measure_if_due(self, step: int) -> None:  # SKIP
        if self.nested.is_due(step):
            with self.log.phase("measure"):
                self.nested.measure(step)

    def begin_reinforcing(self) -> None:
        """The end of the warm-up is the boundary before the first reinforced step, with fresh moments."""
        with uninterrupted():
            self.optimizer = Optimizer(self.model)
            self.phase, self.step = "reinforce", 0

    def between_steps(self) -> None:
        """What is due at a boundary: an evaluation of the full model, with a line of its own, and a checkpoint."""
        raise_together()
        if anyone(time.monotonic() - self.saved_at > SAVE_SECONDS):  # before an evaluation, which may take long
            self.save()
        if self.phase == "reinforce" and self.is_evaluated(self.step) and self.log.last != ("evaluate", self.step):
            self.evaluate()
        if self.step % self.settings.save_every == 0 or self.step == self.final_step():
            self.save()

    def evaluate(self) -> None:
        s, step = self.settings, self.step
        everywhere = step in (0, s.steps)  # on arith's wordings as well
        splits = {
            name: some[: s.eval_problems] for name, some in self.test_splits.items() if everywhere or name != "wordings"
        }
        if step == 0:
            tqdm.write(f"evaluating before the first step, greedy and sampled: {', '.join(splits)}")
        with self.log.phase("evaluate"):
            figures, records = evaluate_splits(self.model, self.tokenizer, splits, s, self.grader)
        samples = [example for mode, each in records.items() for example in examples(step, mode, each)]
        with uninterrupted():
            tqdm.write(self.log.write("evaluate", step, s.steps, figures, samples))
        problems = sum(records.values(), [])
        if not any(record["correct"] for samples in problems for record in samples):
            tqdm.write(none_correct(problems))

    # ---- checkpoints

    def record_origin(self, learn: Callable) -> None:
        """Writes made_with.json. Warns if a run goes on with other code, or on another machine, than it had.

        ValueError if its config.json has been edited.
        """
        s, after = self.settings, f"{self.phase} step {self.step}"
        now = provenance.made_with(self.model, self.tokenizer, s, self.state()["problems"], learn)
        differ = from_rank_0(lambda: provenance.record(self.log.folder, now, after, self.restored))
        if differ:
            said = f"{self.log.folder}: the run continues with other {', '.join(differ)} than it had"
            warnings.warn(said, stacklevel=1)

    def state(self) -> dict:
        """What a resume needs besides the weights and what lies on disk already."""
        state = {
            "format": FORMAT,
            "phase": self.phase,
            "step": self.step,
            "sizes": self.log.sizes,
            "threads": torch.get_num_threads(),
            "date": self.tokenizer.now.isoformat(),
            "problems": zlib.crc32(repr((self.train, self.test_splits)).encode()),  # steps draw them by number
        }
        return state | ({"base": self.base} if self.settings.lora_rank else {})

    def save(self) -> None:
        """Writes a checkpoint of this boundary, unless there is one. FloatingPointError if it is not finite."""
        state = self.state()
        if from_rank_0(lambda: self.saved == state):
            return
        if not self.optimizer.finite():
            raise FloatingPointError("the weights are not finite")

        def write(folder: Path) -> None:
            lora.merged(self.model).save_pretrained(folder)
            lora.save(self.model, folder / "adapter", self.settings.model or str(data.EMBEDDED))
            self.tokenizer.save(folder)
            nested.save(folder / "training" / "nested.safetensors", self.nested.measured)  # SKIP

        with uninterrupted():
            checkpoint.save(self.log.folder, write, self.optimizer, state, self.settings.keep)
            self.saved, self.saved_at = state, time.monotonic()

    def restore(self, folder: Path) -> None:
        """Takes up what `save` wrote besides the model. Raises ValueError before anything is changed on disk."""
        s, now = self.settings, self.state()
        state = checkpoint.load(folder, self.optimizer, now)
        self.restored, self.phase, self.step = True, state["phase"], state["step"]
        self.tokenizer.now = datetime.fromisoformat(state["date"])
        self.nested.measured = nested.read(folder / "training" / "nested.safetensors", self.model)  # SKIP
        if state["problems"] != now["problems"]:
            raise ValueError(f"--resume: the problems of {s.dataset} are not those that the run began with")
        if state.get("base") != now.get("base"):
            raise ValueError(
                f"--resume: the model in {s.model or data.EMBEDDED} is not the one that the run began with"
            )
        if state["threads"] != now["threads"]:
            said = f"the run had {state['threads']} threads, now {now['threads']}: sums round otherwise"
            warnings.warn(said, stacklevel=1)
        self.log.rewind(state["sizes"])
        self.saved = state if folder.name == "checkpoint" else None  # an older one has yet to become the newest


# ---- how a run begins


def set_up(given: dict, resume: bool = False) -> Run:
    """Reads all that the user named, before any slow work and any writing. Raises ValueError or OSError."""
    s = settings_of(given) if resume else Settings(**given).decided()
    if s.adapter and not resume:
        s = replace(s, lora_rank=lora.check(Path(s.adapter), s.model or str(data.EMBEDDED), s.lora_rank))
    out = Path(os.path.expanduser(s.out or f"runs/{datetime.now():%Y-%m-%d-%H%M%S}"))
    distributed.join(s.device)
    if s.prompts < distributed.world_size():
        raise ValueError(
            f"--prompts is {s.prompts}, for {distributed.world_size()} processes; expected one for each at least"
        )
    if not resume:
        checkpoint.refuse_a_run(out)
    lock = checkpoint.claim(out) if resume else None
    with distributed.rank_0_first():
        train, tests = data.load_splits(s.dataset, s.data_dir or None, s.test_file, s.eval_split, s.warmup_epochs)
    saved = checkpoint.checkpoints(out) if resume else []
    load = partial(load_run, s, train, tests, out)
    run = checkpoint.newest_intact(saved, load) if saved else load()
    if resume and not saved:  # it was killed before its first checkpoint
        if (out / "metrics.jsonl").exists() and '"reinforce"' in (out / "metrics.jsonl").read_text(encoding="utf-8"):
            raise ValueError(f"--resume: {out} has steps in its metrics.jsonl, but no checkpoint to continue from")
        run.log.rewind(run.log.sizes)
    if not resume:
        run.log.folder, lock = checkpoint.claim_new(out, any_name=not s.out)
    run.lock = lock
    distributed.on_rank_0(lambda: write_settings(s, run.log.folder))
    if anyone(not (run.log.folder / "config.json").is_file()):
        raise ValueError(
            f"--out {run.log.folder}: all nodes have to see the same folder; expected one on a shared drive"
        )
    return run


def load_run(s: Settings, train: list, tests: dict, out: Path, saved: Path | None = None) -> Run:
    """A run at its beginning, with the model of --model; or as a checkpoint left it, which holds the model, or adapters
    of the one of --model. Raises ValueError or OSError."""
    questions = [problem.question for problems in (train, *tests.values()) for problem in problems]
    base, device = saved if saved and not s.lora_rank else s.model, distributed.join(s.device)
    adapter = s.lora_rank and (saved / "adapter" if saved else s.adapter and Path(s.adapter))
    with distributed.rank_0_first():
        outline, tokenizer = load_outline(base, s.prompt_template or None)  # before the weights are read
        if s.lora_rank:
            lora.add(outline, s.lora_rank, targets=lora.read(adapter).targets if adapter else None)
        longest = check_context(outline, tokenizer, questions, s.max_new_tokens)
        memory = check_memory(outline, s, longest, pick_device(device))
        model, tokenizer = load_model(base, s.dtype, device, s.prompt_template or None)
        if adapter:
            lora.load(model, adapter)
        elif s.lora_rank:
            lora.add(model, s.lora_rank, seed=s.seed)
        if saved and s.lora_rank:
            tokenizer = Tokenizer(saved, s.prompt_template or None)  # as it was when the run began
    tokenizer.now = from_rank_0(lambda: tokenizer.now)
    model.gradient_checkpointing = s.gradient_checkpointing
    run = Run(s, model, tokenizer, train, tests, Log(out), memory)
    if saved:
        run.restore(saved)
    return run


# ---- how a run ends


def launch(learn: Callable[[Run], None], description: str, arguments: list[str] | None = None) -> int:
    """Sets a run up and lets it `learn`. The exit status: 0, 2 for a wrong flag or file, 1 for trouble of the machine
    or the numbers, 130, 143 and 129 for Ctrl-C, SIGTERM and SIGHUP."""
    try:
        run = set_up(*parse(arguments, description))
        run.record_origin(learn)
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error)
    with terminable():
        try:
            status, can_go_on = run_to_end(run, learn)
        except (OSError, KeyboardInterrupt) as error:  # the last boundary could not be saved; Ctrl-C came twice
            status, can_go_on = report_error(error), True
        finally:
            if run.lock:
                run.lock.release()
        hear_no_more()
        saved = run.saved and f"{'warm-up ' * (run.saved['phase'] == 'warmup')}step {run.saved['step']}"
        said = f"checkpoint: {run.log.folder / 'checkpoint'} (after {saved})" if saved else "checkpoint: none"
        said += f"\ncontinue with: {command_to_resume(run.log.folder)}" if status and can_go_on else ""
        try:
            print(said, flush=True)
        except BrokenPipeError:
            print(said, file=sys.stderr)
    if status == 0:
        distributed.leave()
    return 1 if status == 2 else status  # 2 is for what the user gave, which set_up has checked


def run_to_end(run: Run, learn: Callable[[Run], None]) -> tuple[int, bool]:
    """The run itself. Whatever ends it leaves its last boundary in DIR/checkpoint; trouble of the numbers leaves the
    checkpoint before. Returns the exit status, and whether continuing may help."""
    try:
        tqdm.write(run.summary())
        learn(run)
        if run.settings.steps and not from_rank_0(lambda: any(row["stepped"] for row in read(run.log.folder))):
            print("no batch had a signal, nothing was learned: warm up (--warmup-epochs) or skip less (--skip-ratio)")
        distributed.on_rank_0(lambda: print_report(run.log.folder))
        return 0, True
    except (FloatingPointError, OverflowError) as error:  # the last boundary would lead to it again: not saved
        return report_error(error), False
    except BaseException as error:
        all_stop = single_process() or isinstance(error, KeyboardInterrupt)  # saving takes all processes
        if out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # what they hold is room to save in
        with uninterrupted():  # clusters send SIGTERM twice, and people press Ctrl-C twice
            try:
                if all_stop and run.at_boundary and run.optimizer.finite():
                    run.save()
            except Exception as second:
                if not out_of_memory(second):
                    raise
                said = "no memory is left to save the last boundary: the checkpoint before it stays"
                warnings.warn(said, stacklevel=1)
        return report_error(error, advice(run.log.phase_now, run.log.folder / "checkpoint")), True
