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
from dataclasses import replace
from pathlib import Path

import torch

from model import Decoder
from support.distributed import world_size
from support.pretrained import digest
from support.settings import Settings
from support.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
MEASURED_BY = "cache model nested rollout skip support/fast".split()  # what decides how nested models are measured
FILES = [*MEASURED_BY, *"answers evaluate losses reward run train units".split()]
FILES += [
    f"support/{name}" for name in "batches distributed graders lora optimizer pretrained settings tokenizer".split()
]
DECIDES = ("code", "model", "tokens", "problems")


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


def made_with(model: Decoder, tokenizer: Tokenizer, s: Settings, problems: int, learn: Callable | None = None) -> dict:
    """What a run that begins now is made with: DECIDES, and the rest.  problems: their checksum.  learn: as in `code`.

    Of each tensor a thousand numbers are looked at, and none of new adapters, which the seed decides.
    """
    learned = (p.flatten() for name, p in model.named_parameters() if s.adapter or ".lora_" not in name)
    weights = (p[:: max(1, len(p) // 1000)] for p in learned)
    prompt = [] if tokenizer.tells_date else tokenizer.encode_prompt("Two and two?")
    tokens = prompt, tokenizer.encode_completion("2 + 2 = 4 #### 4"), tokenizer.eos_ids
    return {
        "code": code(learn=learn),
        "commit": commit(),
        "model": digest(weights, replace(model.config, extra={}))[:12],
        "tokens": digest((), tokens)[:12],
        "problems": problems,
        "settings": {name: value for name, value in s.given().items() if name not in ("out", "steps")},
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


def record(folder: Path, now: dict, after: str, restored: bool) -> list[str]:
    """Writes what the run in a folder is made with, if it has changed, and returns what has.

    after: the step that it continues after.  restored: from a checkpoint, whose weights are not those that it began
    with.  Raises ValueError if the settings have changed, which are in config.json, to be read.
    """
    known = read(folder)
    before = known[-1] if known else now
    if before.get("settings") != now["settings"]:
        raise ValueError(
            f"{folder / 'config.json'} was edited: the run has the settings {before.get('settings')}, and now "
            f"{now['settings']}; put them back, or begin another run (--steps may be raised)"
        )
    if restored:
        now["model"] = before["model"]
    differ = differences(before, now)
    if differ or not known:
        text = json.dumps([*known, now | {"after": after}], indent=1) + "\n"
        (folder / "made_with.json").write_text(text, encoding="utf-8")
    return differ


def differences(one: dict, other: dict) -> list[str]:
    """What two runs were not made with alike: files of the code, and other keys."""
    apart = dict.fromkeys(("code", "commit", "settings", "after"))
    one, other = ({**each, **each["code"], **apart} for each in (one, other))
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def deciding(entries: list[dict]) -> list:
    """What of it decides a result, and from which step on."""
    found = []
    for entry in entries:
        now = [entry.get(key) for key in DECIDES]
        if not found or found[-1][1] != now:
            found.append((found and entry.get("after"), now))
    return found
