"""The flags of train.py: one dataclass, from which the command line is made.

A field is a flag, `--skip-ratio` for skip_ratio; its metadata hold its help, its choices and its bounds. `Settings`
refuses what cannot be; defaults that depend on the model or on another flag are None, and filled in by `decided`.
"""

import argparse
import difflib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType

import torch

import data
from losses import WEIGHTS, gradient_weights, normaliser
from support.distributed import let_rank_0_speak, single_process, world_size
from support.graders import GRADERS

DEFAULT_CAP = 2.0
GROUPS = {  # the field that each group of flags begins with
    "model": "what most runs need",
    "valid_layers": "nested models",
    "cap": "correction",
    "prompts": "sampling and learning",
    "warmup_epochs": "supervised warm-up",
    "eval_split": "evaluation and checkpoints",
    "adapter": "model and data",
    "dtype": "machine",
}
REMOVED = {  # flags of earlier versions: what replaces them
    "is_level": "--gradient is (by token) or is-sequence",
    "is_cap": "--cap",
    "retrace_trace": "--gradient retrace (the product) or retrace-token",
    "retrace_c_bar": "nothing, c̄ is 1",
    "compile": "nothing",
    "min_acceptance": "nothing, see the table of layers that a run prints",
    "layer_dropout": "nothing, see docs/log.md",
    "lr_warmup_steps": "nothing, the rate rises over 5 steps",
}
REMOVED_VALUES = {
    ("skip_ratio", "auto"): "a share, such as 0.2; a run prints what each further layer costs",
}


def option(default, help: str, choices: tuple = (), low: float = 0, high: float = math.inf):
    """A field of Settings: a flag with its default, its help, and what it may be."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def kind(f: Field) -> type:
    """str, int, float or bool; float of float | None."""
    return f.type if isinstance(f.type, type) else f.type.__args__[0]


@dataclass(frozen=True)
class Settings:
    """One run."""

    model: str = option("", "folder of a checkpoint, or a hub id (default: the embedded model, data/tiny)")
    dataset: str = option(
        "arith", f"problems to train and test on: {', '.join(data.DATASETS)}, or a file *.jsonl, *.json"
    )
    skip_ratio: float = option(0.3, "share of all layers to skip, 0 to 1", high=1)  # SKIP
    gradient: str = option(
        "is-sequence",
        "weight of each token's gradient, which corrects for sampling from the nested model: none (on-policy); "
        "importance sampling by token (is), sequence, prefix, or geometric mean; Retrace, or its factor of the token",
        tuple(WEIGHTS),
    )
    steps: int = option(60, "batches of reinforced fine-tuning")
    lora_rank: int = option(0, "rank R of adapters, which learn instead of the weights; 0: all weights learn")
    device: str = option("auto", "cpu, cuda, cuda:1 or mps; auto: the best there is")
    out: str = option("", "folder to write to (default: runs/ and the time)")

    valid_layers: str = option(  # SKIP
        "measured", "layers that may be skipped: measured, by the acceptance, border:K, or a list such as 2,5,8-11"
    )
    bypass: str = option(  # SKIP
        "linear",
        "what a skipped layer becomes: linear (a low-rank fit), mean (its mean update), identity (nothing)",
        ("linear", "mean", "identity"),
    )
    prefill: str = option(  # SKIP
        "full", "which model reads the prompts: full, and the nested one continues from its keys and values, or nested",
        ("full", "nested"),
    )  # fmt: skip
    measure_every: int = option(50, "steps between measurements of nested models", low=1)  # SKIP

    cap: float | None = option(None, "C, the cap of gradients whose name begins with is; 0: none (default: 2)")
    bound: str = option(
        "truncate", "weights beyond the cap: truncate them to C, or mask, 0 outside [1/C, C]", ("truncate", "mask")
    )
    retrace_lambda: float = option(1.0, "λ of the retrace kinds, 0 to 1", high=1)
    advantage: str = option("grpo", "baseline of a group's rewards", ("grpo", "mean", "rloo"))
    normaliser: str = option("tokens", "Z of the loss: tokens or completions of the batch, or a number")

    prompts: int = option(8, "problems a batch", low=1)
    samples: int = option(8, "completions a problem, its group", low=2)
    max_new_tokens: int = option(128, "tokens of a completion at most; one that does not end earns 0", low=1)
    temperature: float = option(1.0, "τ of sampling and of the policy that is trained", low=0.01)
    lr: float | None = option(
        None, "learning rate of AdamW (default: 1e-5, for the embedded model 1e-4; with adapters ten times as much)"
    )
    updates: int = option(1, "optimiser steps on each batch", low=1)
    max_grad_norm: float = option(1.0, "the gradient is clipped to this norm; 0: not at all")
    micro_batch_tokens: int = option(
        2048, "tokens of a forward and backward pass, prompts and padding too; changes memory, not the gradient", low=1
    )

    warmup_epochs: int = option(0, "epochs of supervised learning on the rationales before the reinforced steps")
    warmup_lr: float | None = option(
        None, "its peak learning rate (default: 1e-4, for the embedded model 1e-3; with adapters ten times as much)"
    )
    warmup_batch: int = option(16, "problems a step of the warm-up", low=1)

    eval_split: str = option(
        "test", "test, or valid to make choices with: the last 100 problems of train, then not trained on",
        ("test", "valid"),
    )  # fmt: skip
    eval_every: int = option(20, "steps between evaluations; also before the first and after the last step", low=1)
    eval_problems: int = option(500, "problems of an evaluation at most", low=1)
    save_every: int = option(20, "steps between checkpoints, in the warm-up too; ten minutes at most", low=1)
    keep: int = option(2, "checkpoints to keep: the last one and, beside it, older ones", low=1)

    adapter: str = option("", "folder of a saved adapter to continue from, with its rank (default: a new one)")
    data_dir: str = option("", "folder with the data set's files (default: a cache, filled by a download)")
    test_file: str = option("", "a file *.jsonl to test with, all of it (default: the data set's own test split)")
    prompt_template: str = option("", "prompt with {question} in it (default: the checkpoint's own chat template)")
    grader: str = option(
        "rules",
        "how answers that are no numbers are compared: by the rules of answers.py, or by math-verify too",
        GRADERS,
    )

    dtype: str = option("float32", "of the forward and backward passes; AdamW is float32", ("float32", "bfloat16"))
    gradient_checkpointing: bool = option(False, "compute blocks again in the backward pass: less memory, more time")
    seed: int = option(0, "of the order of the problems, the masks and the completions", high=2**31 - 1)

    def __post_init__(self):
        """Raises ValueError that names the flag, what was given and what was expected."""
        for f in fields(self):
            value, (choices, low, high) = getattr(self, f.name), (f.metadata[k] for k in ("choices", "low", "high"))
            given = f"{flag(f.name)} is {value!r}"
            if replacement := REMOVED_VALUES.get((f.name, value)):
                raise ValueError(f"{given}, which is gone; in its place: {replacement}")
            if value is None and f.default is None:
                continue
            if not isinstance(value, (int, float) if kind(f) is float else kind(f)):
                raise ValueError(f"{given}; expected {kind(f).__name__}")
            if isinstance(value, str) and value != value.encode(errors="replace").decode():
                raise ValueError(f"{given}; expected a text in UTF-8, which libraries and pictures can take")
            if choices and value not in choices:
                raise ValueError(f"{given}; expected one of {', '.join(choices)}{nearest(value, choices)}")
            if isinstance(value, int | float) and not (low <= value <= high and math.isfinite(value)):
                bounds = f"{low} or more" if high == math.inf else f"a number from {low} to {high}"
                raise ValueError(f"{given}; expected {bounds}")
        for name, prefix, none in (
            ("cap", "is", None),
            ("bound", "is", "truncate"),
            ("retrace_lambda", "retrace", 1.0),
        ):
            if getattr(self, name) != none and not self.gradient.startswith(prefix):
                raise ValueError(
                    f"{flag(name)} is {getattr(self, name)}, but --gradient {self.gradient} has none; expected a "
                    f"gradient whose name begins with {prefix}, or no {flag(name)}"
                )
        one = torch.ones(1, 1)  # losses.py says what else cannot be
        gradient_weights(self.gradient, 0 * one, one, self.effective_cap, self.retrace_lambda, self.bound)
        normaliser(one, self.normaliser)

    @property
    def effective_cap(self) -> float | None:
        """C of the importance weights, for `losses.gradient_weights`; None: no truncation."""
        return DEFAULT_CAP if self.cap is None else self.cap or None

    def decided(self) -> "Settings":
        """With the defaults that depend on the model or on the gradient in place of None."""
        embedded = not self.model or Path(self.model).resolve() == data.EMBEDDED.resolve()
        faster = 10 if self.lora_rank or self.adapter else 1
        defaults = {
            "cap": DEFAULT_CAP if self.gradient.startswith("is") else None,
            "lr": (1e-4 if embedded else 1e-5) * faster,
            "warmup_lr": (1e-3 if embedded else 1e-4) * faster,
        }
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def given(self) -> dict:
        """The fields that are not what they would be without their flag."""
        automatic = replace(self, **{f.name: None for f in fields(self) if f.default is None}).decided()
        usual = {f.name: getattr(automatic, f.name) if f.default is None else f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error: which of the known words was meant, if one is near."""
    near = difflib.get_close_matches(word.lower(), known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def words(given: dict) -> str:
    """Settings as they are typed."""
    texts = {name: f"{value:g}" if type(value) is float else str(value) for name, value in given.items()}
    typed = {"True": "", "False": None, "None": None}  # a flag without a value; no flag
    values = {name: typed.get(text, f" {shlex.quote(text)}") for name, text in texts.items()}
    return " ".join(flag(name) + value for name, value in values.items() if value is not None)


def parse(arguments: list[str] | None, description: str) -> tuple[dict, bool]:
    """The settings that were given, by name, and whether to resume."""
    parser = argparse.ArgumentParser(
        usage="python train.py [--flag value ...]",
        description="\n\n".join(description.split("\n\n")[:2]),  # what it is, and an example
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    resume = "continue the run in --out, as if it had not stopped (default: off)"
    parser.add_argument("--resume", action="store_true", help=resume)
    add_flags(parser)
    given = with_whole_paths(vars(parse_strictly(parser, arguments, REMOVED)))
    return given, given.pop("resume")


def add_flags(parser: argparse.ArgumentParser, names: tuple[str, ...] = ()) -> None:
    """A flag for each field of Settings, or for those named. What is not given is not in the result."""
    group = parser
    for f in fields(Settings):
        if f.name in GROUPS and not names:
            group = parser.add_argument_group(GROUPS[f.name])
        if names and f.name not in names:
            continue
        about = {"default": argparse.SUPPRESS, "help": f.metadata["help"]}
        if "(default:" not in about["help"]:
            about["help"] += f" (default: {'off' if f.default is False else f.default})"
        if kind(f) is bool:
            about |= {"action": "store_true"}
        elif f.metadata["choices"]:  # which Settings checks
            about |= {"metavar": f"{{{','.join(f.metadata['choices'])}}}"}
        else:
            about |= {"type": typed(f), "metavar": "X"}
        group.add_argument(flag(f.name), **about)


def typed(f: Field) -> Callable[[str], object]:
    """What makes a field's value of the text that was typed. One that is gone stays a text, for Settings to refuse."""

    def value(text: str):
        return text if (f.name, text) in REMOVED_VALUES else kind(f)(text)

    value.__name__ = kind(f).__name__  # argparse says it in its errors
    return value


def with_whole_paths(given: dict) -> dict:
    """A resume may come from another folder."""
    for name in ("dataset", "data_dir", "model", "adapter", "test_file"):
        path = os.path.abspath(os.path.expanduser(given.get(name, "")))
        folder = name != "dataset" and os.path.isdir(path)  # a folder called svamp is not what --dataset svamp means
        if given.get(name) and (name in ("data_dir", "test_file") or data.is_file(path) or folder):
            given[name] = path
    return given


def parse_strictly(
    parser: argparse.ArgumentParser, arguments: list[str] | None, gone: dict[str, str] = MappingProxyType({})
) -> argparse.Namespace:
    """parser.parse_args, which also says which flag was meant, or what replaces one that is gone. From here on a letter
    that a terminal or a pipe does not know is printed as a question mark, and a line leaves when it is printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace", line_buffering=True)
    parser.error = lambda said: let_rank_0_speak() or parser.exit(2, f"error: {said}\n")
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].partition("=")[0]
        replacement = gone.get(name.removeprefix("--").replace("-", "_"))
        hint = f"; in its place: {replacement}" if replacement else nearest(name, parser._option_string_actions)
        parser.error(f"no such argument: {name}{hint}")
    return known


def settings_of(given: dict) -> Settings:
    """The settings of the run in --out, of which --steps may be raised; with another setting it is another run."""
    if not given.get("out"):
        raise ValueError("--resume needs --out, the folder of the run to continue")
    try:
        s = read_settings(Path(os.path.expanduser(given["out"])))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--resume: {error}") from None
    if given.get("steps", s.steps) > s.steps:
        s = replace(s, steps=given["steps"])
    for name, value in given.items():
        if name != "out" and value != getattr(s, name):
            raise ValueError(
                f"--resume with {flag(name)} {value!r}: the run in {given['out']} has {getattr(s, name)!r}; leave the "
                "flag out, or begin another run" + " (--steps may be raised)" * (name == "steps")
            )
    return replace(s, out=given["out"])


def command_to_resume(folder: Path) -> str:
    python = "python" if single_process() else f"torchrun --nproc-per-node {world_size()}"
    out = subprocess.list2cmdline([str(folder)]) if os.name == "nt" else shlex.quote(str(folder))
    return f"{python} train.py --out {out} --resume"


def read_settings(folder: Path) -> Settings:
    """Those of the run in a folder. FileNotFoundError where none is, ValueError where it is of another version."""
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"no run in {folder} ({config.name} is not there)")
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"expected a JSON object, got {str(raw)[:80]}")
        if gone := sorted(raw.keys() & REMOVED):
            raise ValueError(
                f"written by an older version, with {flag(gone[0])} (in its place: {REMOVED[gone[0]]}); begin another "
                f"run, with --model {config.parent / 'checkpoint'} to continue from its weights"
            )
        return Settings(**raw)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config}: not the settings of a run ({error})") from None


def write_settings(s: Settings, folder: Path) -> None:
    """config.json, whole; left alone if it says the same already."""
    text, path = json.dumps(asdict(s), indent=2) + "\n", folder / "config.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        partial = folder / "config.json.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
