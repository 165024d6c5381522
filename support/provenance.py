"""What a run was made with, besides its settings: DIR/made_with.json.

A list: what it began with, and what each --resume found that was not so any more. Two runs are seeds of one arm only if
what decides their result is the same (report.py); the rest may change a rounding, and what a second is worth.
"""

import hashlib
import inspect
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from model import Decoder
from support.distributed import world_size
from support.pretrained import digest

ROOT = Path(__file__).resolve().parents[1]
MEASURED_BY = "cache model nested rollout skip support/fast".split()  # what decides how nested models are measured
FILES = [*MEASURED_BY, *"answers evaluate losses reward train units".split()]
FILES += [f"support/{name}" for name in "batches graders lora optimizer tokenizer".split()]


def code(names: list[str] = FILES, learn: Callable | None = None) -> dict[str, str]:
    """A digest of each file that decides a result.  learn: a function of one more, the script of a fork."""
    paths = [ROOT / f"{name}.py" for name in names]
    if names is FILES:
        paths += sorted((ROOT / "data").glob("*.py"))
    if inspect.isfunction(learn):
        paths.append(Path(inspect.getfile(learn)).resolve())
    texts = {os.path.relpath(path, ROOT): path.read_text(encoding="utf-8") for path in paths if path.is_file()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()}


def commit() -> str | None:
    """Of the code, with "-dirty" where files were edited since; None without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def made_with(model: Decoder, problems: int, learn: Callable | None = None, with_adapters: bool = False) -> dict:
    """What a run that begins now is made with.  with_adapters: they have learned before, and count as weights."""
    weights = (p.flatten()[:1000] for name, p in model.named_parameters() if with_adapters or ".lora_" not in name)
    return {
        "code": code(learn=learn),
        "commit": commit(),
        "model": digest(weights, model.config)[:12],
        "problems": problems,
        "torch": torch.__version__,
        "device": model.device.type,
        "processes": world_size(),
    }


def read(folder: Path) -> list[dict]:
    """What the run in a folder was made with, from its beginning on; empty where that is not known."""
    try:
        entries = json.loads((folder / "made_with.json").read_text(encoding="utf-8"))
        return entries if all(isinstance(entry["code"], dict) for entry in entries) else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def record(folder: Path, now: dict, after: str) -> list[str]:
    """Writes what the run in a folder is made with, if it has changed.  after: the step that it continues after.

    Returns what differs from before. A checkpoint has other weights than the run began with, which is no difference.
    """
    known = read(folder)
    now |= {"model": known[-1]["model"]} if known else {}
    differ = differences(known[-1], now) if known else []
    if differ or not known:
        text = json.dumps([*known, now | {"after": after}], indent=1) + "\n"
        (folder / "made_with.json").write_text(text, encoding="utf-8")
    return differ


def differences(one: dict, other: dict) -> list[str]:
    """What two runs were not made with alike: files of the code, and other keys."""
    one, other = ({**each, **each["code"], "code": None, "commit": None, "after": None} for each in (one, other))
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def deciding(entries: list[dict]) -> list[dict]:
    """What of it decides a result."""
    return [{key: entry.get(key) for key in ("code", "model", "problems")} for entry in entries]
