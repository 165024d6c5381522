"""Checkpoints that are whole or not there.

DIR/checkpoint/             the last one: a Hugging Face folder (config.json, model.safetensors, the tokenizer)
    adapter/                with --lora-rank, the adapters in PEFT's format; the model above has them merged
    training/               optimizer/, state.json and, if measured, nested.safetensors: for --resume
    nested/                 cache: what a later run with --model on this folder measured
DIR/checkpoint-STEP/        older ones, as many as --keep says
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from support.distributed import anyone, barrier, from_rank_0, on_rank_0, rank
from support.log import out_of_memory
from support.optimizer import Optimizer
from support.signals import uninterrupted

T = TypeVar("T")
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # what some network drives answer


def save(folder: Path, write: Callable[[Path], None], optimizer: Optimizer, state: dict, keep: int) -> None:
    """Writes DIR/checkpoint; the one before becomes DIR/checkpoint-STEP, and `keep` of them stay in all.

    write: puts the model's own files into a folder.  state: what else a resume needs, as JSON, with `phase` and `step`.
    A kill or a power cut at any moment leaves a whole checkpoint, the old one or the new one: folders get their names
    only when they are complete and on the disk. OSError (a full disk) leaves the old one in its place. Nothing is
    removed but what a run made.
    """
    partial, training = folder / "checkpoint.partial", folder / "checkpoint.partial" / "training"

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        training.mkdir(parents=True)  # apart: servers read every *.safetensors beside config.json
        write(partial)
        (training / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")

    try:
        with uninterrupted():
            on_rank_0(begin)
            optimizer.save(training / "optimizer")
            barrier()
            on_rank_0(lambda: put_in_place(folder, keep))
    finally:
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)


def put_in_place(folder: Path, keep: int) -> None:
    """DIR/checkpoint.partial, which is whole, becomes DIR/checkpoint."""
    newest, partial, aside = folder / "checkpoint", folder / "checkpoint.partial", folder / "checkpoint.before"
    sync([*folder.glob("*.jsonl"), *partial.rglob("*"), partial])  # state.json counts the bytes of the former
    if newest.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(newest, aside)
    os.replace(partial, newest)
    sync([folder])
    older = archived_name(aside)
    if older not in (None, archived_name(newest)) and not (folder / older).exists():  # one copy of a step is enough
        os.replace(aside, folder / older)
    shutil.rmtree(aside, ignore_errors=True)
    for old in older_checkpoints(folder)[keep - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def sync(paths: list[Path]) -> None:
    """Waits until files and folders are on the disk, if the system supports it."""
    for path in paths:
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def load(checkpoint: Path, optimizer: Optimizer, like: dict) -> dict:
    """Takes up the optimiser's part of what `save` wrote, and returns `state`, which has the keys of `like` and its
    `format`. ValueError where it is of another version or model, or broken; nothing on disk is changed."""
    training = checkpoint / "training"
    try:
        state = json.loads((training / "state.json").read_text(encoding="utf-8"))
        if (written := state.get("format", 1)) == like["format"] and state.keys() != like.keys():
            raise KeyError(*(state.keys() ^ like.keys()))
        if written == like["format"]:
            optimizer.load(training / "optimizer")
    except FileNotFoundError as error:
        raise ValueError(f"{checkpoint}: cannot be resumed from, {Path(error.filename).name} is not there") from None
    except (
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        RuntimeError,
        SafetensorError,
        CheckpointException,
    ) as error:
        causes = [cause for cause, _ in getattr(error, "failures", {}).values()]
        if any(map(out_of_memory, (error, *causes))):
            raise MemoryError from None  # no fault of the checkpoint
        raise ValueError(f"{training}: not the state of this run's model ({error!r})") from None
    if written != like["format"]:
        raise ValueError(
            f"{checkpoint}: of another version of this code (format {written}, this one reads {like['format']}); begin "
            f"another run from its weights, with --model {checkpoint}"
        )
    return state


def archived_name(checkpoint: Path) -> str | None:
    """The name that a checkpoint has when it is an older one; None where there is none, or a broken one."""
    try:
        state = json.loads((checkpoint / "training" / "state.json").read_text(encoding="utf-8"))
        return f"checkpoint-{'warmup-' * (state['phase'] == 'warmup')}{state['step']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def older_checkpoints(folder: Path) -> list[Path]:
    """DIR/checkpoint-STEP, the latest first; those of the warm-up come before all others. Not what a user put there:
    the name says what the checkpoint's state says."""
    older = [path for path in folder.glob("checkpoint-*") if archived_name(path) == path.name]
    return sorted(older, key=lambda p: ("warmup" not in p.name, int(p.name.rpartition("-")[2])), reverse=True)


def checkpoints(folder: Path) -> list[Path]:
    """DIR/checkpoint, then DIR/checkpoint.before (left by a kill during a save), then the older ones."""
    newest = [path for path in (folder / "checkpoint", folder / "checkpoint.before") if path.is_dir()]
    return [*newest, *older_checkpoints(folder)]


def newest_intact(saved: list[Path], load: Callable[[Path], T]) -> T:
    """What `load` makes of the first checkpoint that is whole. Broken ones before it are renamed, else a later save
    would keep them in place of whole ones. If there is none, raises the error of the first."""
    errors = []
    for folder in saved:
        loaded = error = None
        try:
            loaded = load(folder)
        except (ValueError, FileNotFoundError) as this:
            error = this.with_traceback(None)  # which would hold on to the model
        if anyone(error is not None):
            errors.append(error or ValueError(f"{folder}: another process could not read it"))
            continue
        if errors:
            warnings.warn(f"{errors[0]}; continuing from {folder}", stacklevel=1)
            on_rank_0(lambda: mark_broken(saved[: len(errors)]))
        return loaded
    raise errors[0]


def mark_broken(broken: list[Path]) -> None:
    """Checkpoints that could not be read get names that are no checkpoint's."""
    for folder in broken:
        named = folder.with_name(f"{folder.name}.broken")
        shutil.rmtree(named, ignore_errors=True)
        with suppress(OSError):  # then it stays what it is: broken
            os.replace(folder, named)


def refuse_a_run(folder: Path) -> None:
    """Raises FileExistsError if the folder already holds a run, or a model, whose config.json a run would replace."""
    settings = folder / "config.json"
    if inside := next(folder.glob("*/metrics.jsonl"), None):
        raise FileExistsError(f"--out {folder} is a folder of runs, {inside.parent.name} among them; name one in it")
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoint").exists():
        raise FileExistsError(f"--out {folder} already holds a run; name another folder, or continue it (--resume)")
    if settings.exists() and b'"skip_ratio"' not in settings.read_bytes():
        raise FileExistsError(f"--out {folder} holds a model, or another config.json; name another folder for the run")


def claim_new(folder: Path, any_name: bool) -> tuple[Path, FileLock]:
    """Locks the folder for a new run; with any_name tries name_2, name_3, … if it is taken. -> the folder, its lock."""
    locks = []

    def first() -> Path:
        name = folder
        for n in count(2):
            try:
                lock = claim(name)
                refuse_a_run(name)
                locks.append(lock)
                return name
            except (BlockingIOError, FileExistsError):
                if not any_name:
                    raise
                name = folder.with_name(f"{folder.name}_{n}")

    return from_rank_0(first), *(locks or [None])


def claim(folder: Path) -> FileLock | None:
    """A lock on the folder for as long as a run writes there. BlockingIOError where another process has it."""
    if rank() > 0:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"--out {folder}: another run is writing there; wait for it, or name another") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise
        warnings.warn(f"{folder} cannot be locked: see that no other run writes there", stacklevel=1)
    return lock
