"""What of a run must outlive the process: its state on disk, and the moments at which it must not be stopped.

The state of a run is the model's weights, AdamW's (`MasterWeights`), what nested models are made from, the phase and
the step, a step's figures while they are not yet written, and how long the files of `Log` were. Nothing else: every
random draw is a function of (seed, step), and settings and data are on disk already. `save` writes the state, `restore`
takes it up; a run that was stopped goes on bit by bit as if it had not been, on the same machine with as many threads.

    DIR/checkpoint/             the last one: a Hugging Face folder (config.json, model.safetensors, the tokenizer)
        nested/                 measured.safetensors: the bypass and the order in which layers can be left out
        training/               optimizer.safetensors and state.json: what else a resume needs
    DIR/checkpoint-STEP/        older ones, as many as --keep says
"""

import json
import math
import os
import shutil
import signal
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import Bypass, Decoder
from skip import Measured


def save(run) -> None:
    """Writes the state of a `train.Run`. A kill at any moment leaves a whole checkpoint, the old one or the new one:
    folders get their names only when they are complete. OSError (a full disk) leaves the old one in its place.
    """
    folder = run.log.folder
    newest, partial = folder / "checkpoint", folder / "checkpoint.partial"
    if run.log.saved == described(newest, run):  # a step's weights are the same, however often it is come to
        return
    state = {
        **{"phase": run.phase, "step": run.step, "figures": run.figures, "watch": asdict(run.watch)},
        **{"samples": run.log.samples, "sizes": run.log.sizes},
        **{"problems": fingerprint(run), "threads": torch.get_num_threads()},
    }
    try:
        with uninterrupted():
            shutil.rmtree(partial, ignore_errors=True)
            run.model.save_pretrained(partial)
            run.tokenizer.save(partial)
            save_measured(run, partial)
            (partial / "training").mkdir()  # apart: whoever serves the model reads all *.safetensors beside config.json
            save_file(run.weights.state(), partial / "training" / "optimizer.safetensors")
            (partial / "training" / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
            if newest.exists():
                before = json.loads((newest / "training" / "state.json").read_text(encoding="utf-8"))
                older = folder / f"checkpoint-{'warmup-' * (before['phase'] == 'warmup')}{before['step']}"
                shutil.rmtree(older, ignore_errors=True)
                os.replace(newest, older)
            os.replace(partial, newest)
            run.log.saved = described(newest, run)
            for old in older_checkpoints(folder)[run.settings.keep - 1 :]:
                shutil.rmtree(old)
    except SafetensorError as error:  # its way to say that the disk is full
        raise OSError(f"{partial}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def described(checkpoint: Path, run) -> str:
    return f"{checkpoint} (after {'warm-up ' * (run.phase == 'warmup')}step {run.step})"


def older_checkpoints(folder: Path) -> list[Path]:
    """DIR/checkpoint-STEP, the latest first; those of the warm-up come before all others."""
    older = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(older, key=lambda p: ("warmup" not in p.name, int(p.name.rpartition("-")[2])), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """DIR/checkpoint; if it was just giving way to the next one when the run was killed, the one before; or None."""
    return next((path for path in (folder / "checkpoint", *older_checkpoints(folder)) if path.is_dir()), None)


def restore(run, checkpoint: Path) -> None:
    """Takes up what `save` wrote besides the model. Raises ValueError before anything is changed on disk."""
    training = checkpoint / "training"
    try:
        state = json.loads((training / "state.json").read_text(encoding="utf-8"))
        run.weights.load(load_file(training / "optimizer.safetensors"))
        run.phase, run.step, run.figures = state["phase"], state["step"], state["figures"]
        run.watch = replace(run.watch, **state["watch"])
        run.log.samples, sizes = state["samples"], state["sizes"]
        read_measured(run, checkpoint, resumed=True)
        problems, threads = state["problems"], state["threads"]
    except FileNotFoundError as error:
        raise ValueError(f"{checkpoint}: cannot be resumed from, {Path(error.filename).name} is not there") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{training}: not the state of this run's model ({error!r})") from None
    if problems != fingerprint(run):
        raise ValueError(f"--resume: the problems of {run.settings.dataset} are not those that the run began with")
    if threads != torch.get_num_threads():
        warnings.warn(
            f"the run had {threads} threads, now {torch.get_num_threads()}: sums round otherwise", stacklevel=1
        )
    run.log.rewind(sizes)
    run.log.saved = described(checkpoint, run)


def save_measured(run, folder: Path) -> None:
    """Writes what `train.measure_nested` found, if anything, into folder/nested: a directory of its own, as above."""
    tensors = {} if run.model.bypass is None else vars(run.model.bypass).copy()
    if run.measured:
        tensors |= {name: torch.from_numpy(np.array(figures)) for name, figures in asdict(run.measured).items()}
    if tensors:
        (folder / "nested").mkdir(exist_ok=True)
        save_file(tensors, folder / "nested" / "measured.safetensors", metadata={"of": measured_of(run)})


def read_measured(run, folder: Path, resumed: bool = False) -> bool:
    """Takes up what `save_measured` wrote. False where there is nothing, or of other weights or settings; what is
    resumed may be of earlier weights."""
    path = folder / "nested" / "measured.safetensors"
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            if not resumed and (file.metadata() or {}).get("of") != measured_of(run):
                return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        if resumed:
            raise
        warnings.warn(f"{path}: not a whole safetensors file ({error}), measured again", stacklevel=1)
        return False
    if "down" in tensors:
        run.model.bypass = Bypass(*(tensors[f.name].to(run.model.lm_head.weight) for f in fields(Bypass)))
    if "order" in tensors:
        run.measured = Measured(*(tensors[f.name].tolist() for f in fields(Measured)))
    return True


def measured_of(run) -> str:
    """What a measurement depends on, the weights by the first row of each."""
    s, weights = run.settings, 0
    for parameter in run.model.parameters():
        weights = zlib.crc32(parameter.detach()[:1].float().cpu().numpy().tobytes(), weights)
    settings = s.dataset, s.valid_layers, s.bypass, s.temperature, s.max_new_tokens, s.prompt_template
    return repr((run.phase, *settings, weights))


def fingerprint(run) -> int:
    """Of all problems: the steps of a run draw them by number."""
    return zlib.crc32(repr((run.train, run.tests)).encode())


class MasterWeights:
    """AdamW on float32 weights; the model's own, of whatever dtype, are rounded from them after each step.

    In bfloat16 an update of 1e-6 would round to nothing (8 bits of mantissa); here it adds up until it shows. Gradients
    of micro-batches are added up in float32 as well. A float32 model is its own master, without a copy.
    """

    def __init__(self, model: Decoder):
        self.names, self.working = zip(*model.named_parameters(), strict=True)
        copies = self.working[0].dtype != torch.float32
        self.masters = [p.detach().float() for p in self.working] if copies else list(self.working)
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
        with torch.no_grad():
            self.adamw.step()
            self.adamw.zero_grad()
            for master, working in zip(self.masters, self.working, strict=True):
                if master is not working:
                    working.copy_(master)
        return norm

    def finite(self) -> bool:
        return all(master.isfinite().all() for master in self.masters)

    def state(self) -> dict[str, Tensor]:
        """What the model's own weights do not say: AdamW's moments and steps, and the masters where they are copies."""
        tensors = {}
        for name, master, working in zip(self.names, self.masters, self.working, strict=True):
            tensors |= {f"{key}.{name}": value for key, value in self.adamw.state[master].items()}
            if master is not working:
                tensors[f"master.{name}"] = master
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over another one's `state()`. KeyError or RuntimeError where it is of another model."""
        moments = {}
        for i, (name, master, working) in enumerate(zip(self.names, self.masters, self.working, strict=True)):
            if master is not working:
                master.copy_(tensors[f"master.{name}"])
            if f"step.{name}" in tensors:  # none before the first step
                moments[i] = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.adamw.load_state_dict({"state": moments, "param_groups": self.adamw.state_dict()["param_groups"]})


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it kills."""


@contextmanager
def terminable():
    """SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt."""

    def terminate(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uninterrupted():
    """Ctrl-C and SIGTERM wait for the end of this block: half a step or half a file is worth less than none."""
    heard, signals = [], (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda number, _: heard.append(number)) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
    if heard:
        signal.raise_signal(heard[0])


def interrupted(error: KeyboardInterrupt) -> int:
    """The exit status as a shell gives it: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
