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
            write(partial)
            (partial / "training").mkdir()  # apart: whoever serves the model reads all *.safetensors beside config.json
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


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it kills. Its exit status is the shell's, 128 and the signal's number."""

    status = 128 + signal.SIGTERM


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


HEARD: list[int] = []  # signals that wait


@contextmanager
def uninterrupted():
    """Ctrl-C and SIGTERM wait for the end of this block, or for `hear_signals` in it: half a step or half a file is
    worth less than none."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda number, _: HEARD.append(number)) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
        heard = HEARD[:1]
        HEARD.clear()
    if heard:
        signal.raise_signal(heard[0])


def hear_signals() -> None:
    """Raises what `uninterrupted` holds back, at a moment when stopping costs nothing."""
    if HEARD:
        raise Terminated if HEARD[0] == signal.SIGTERM else KeyboardInterrupt
