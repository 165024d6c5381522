"""Checkpoints that are whole or not there, and the moments at which a run must not be stopped.

DIR/checkpoint/             the last one: a Hugging Face folder (config.json, model.safetensors, the tokenizer)
    nested/                 what nested models are made from, if that was measured (nested.py)
    training/               optimizer.safetensors and state.json: what else a resume needs
DIR/checkpoint-STEP/        older ones, as many as --keep says
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from support.optimizer import Optimizer


def save(folder: Path, write: Callable[[Path], None], optimizer: Optimizer, state: dict, keep: int) -> None:
    """Writes DIR/checkpoint; the one before becomes DIR/checkpoint-STEP, and `keep` of them stay in all.

    write: puts the model's own files into a folder.  state: what else a resume needs, as JSON, with `phase` and `step`.
    A kill at any moment leaves a whole checkpoint, the old one or the new one: folders get their names only when they
    are complete. OSError (a full disk) leaves the old one in its place.
    """
    newest, partial = folder / "checkpoint", folder / "checkpoint.partial"
    try:
        with uninterrupted():
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "training").mkdir(parents=True)  # apart: servers read every *.safetensors beside config.json
            write(partial)
            save_file(optimizer.state(), partial / "training" / "optimizer.safetensors")
            (partial / "training" / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
            before = None
            if newest.exists():
                before = json.loads((newest / "training" / "state.json").read_text(encoding="utf-8"))
                older = folder / f"checkpoint-{'warmup-' * (before['phase'] == 'warmup')}{before['step']}"
                shutil.rmtree(older, ignore_errors=True)
                os.replace(newest, older)
            os.replace(partial, newest)
            if before and (before["phase"], before["step"]) == (state["phase"], state["step"]):
                shutil.rmtree(older)  # the same step, before its evaluation
            for old in older_checkpoints(folder)[keep - 1 :]:
                shutil.rmtree(old)
    except SafetensorError as error:  # its way to say that the disk is full
        raise OSError(f"{partial}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(checkpoint: Path, optimizer: Optimizer, like: dict) -> dict:
    """Takes up the optimiser's part of what `save` wrote, and returns `state`, which has the keys of `like` and its
    `format`. ValueError where it is of another version or model, or broken; nothing on disk is changed."""
    training = checkpoint / "training"
    try:
        state = json.loads((training / "state.json").read_text(encoding="utf-8"))
        if (written := state.get("format", 1)) == like["format"] and state.keys() != like.keys():
            raise KeyError(*(state.keys() ^ like.keys()))
        if written == like["format"]:
            optimizer.load(load_file(training / "optimizer.safetensors"))
    except FileNotFoundError as error:
        raise ValueError(f"{checkpoint}: cannot be resumed from, {Path(error.filename).name} is not there") from None
    except (ValueError, AttributeError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{training}: not the state of this run's model ({error!r})") from None
    if written != like["format"]:
        raise ValueError(
            f"{checkpoint}: of another version of this code (format {written}, this one reads {like['format']}); begin "
            f"another run from its weights, with --model {checkpoint}"
        )
    return state


def older_checkpoints(folder: Path) -> list[Path]:
    """DIR/checkpoint-STEP, the latest first; those of the warm-up come before all others."""
    older = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(older, key=lambda p: ("warmup" not in p.name, int(p.name.rpartition("-")[2])), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """DIR/checkpoint; if it was just giving way to the next one when the run was killed, the one before; or None."""
    return next((path for path in (folder / "checkpoint", *older_checkpoints(folder)) if path.is_dir()), None)


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it kills, or SIGHUP, of a terminal that is closed."""

    def __init__(self, number: int = signal.SIGTERM):
        self.status = 128 + number  # the exit status as a shell gives it


def heeded() -> list[int]:
    """Those of SIGNALS that are not ignored, as nohup has it of SIGHUP, and a shell's background job of SIGINT."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def terminable():
    """SIGTERM and SIGHUP raise Terminated, as Ctrl-C raises KeyboardInterrupt."""

    def terminate(number, _):
        raise Terminated(number)

    before = {number: signal.signal(number, terminate) for number in heeded() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


HEARD: list[int] = []  # signals that wait


@contextmanager
def uninterrupted():
    """Signals wait for the end of this block, or for `hear_signals` in it: half a step or half a file is
    worth less than none."""
    before = {number: signal.signal(number, lambda number, _: HEARD.append(number)) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        heard = HEARD[:1]
        HEARD.clear()
    if heard:
        signal.raise_signal(heard[0])


def hear_signals() -> None:
    """Raises what `uninterrupted` holds back, at a moment when stopping costs nothing."""
    if HEARD:
        raise KeyboardInterrupt if HEARD[0] == signal.SIGINT else Terminated(HEARD[0])
