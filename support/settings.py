"""The flags of train.py: one dataclass, from which the command line is made.

A field's metadata hold its help, its choices and its bounds. `Settings` itself refuses what cannot be; defaults that
depend on the model are filled in by `decided`.
"""

import argparse
import json
import math
import os
from dataclasses import Field, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch

import data
from losses import WEIGHTS, normaliser
from support.graders import GRADERS


def option(default, help: str, choices: tuple = (), low: float = 0, high: float = math.inf, word: str = ""):
    """A field of Settings: a flag with its default, its help, and what it may be; a number's may be a word as well."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high, "word": word})


def kind(f: Field) -> type:
    """str, int, float or bool; float of float | None."""
    return f.type if isinstance(f.type, type) else f.type.__args__[0]


@dataclass(frozen=True)
class Settings:
    """One run. Each field is a flag of the command line, `--skip-ratio` for skip_ratio."""

    model: str = option("", "folder of a checkpoint, or a hub id; none: the embedded one, data/tiny")
    dataset: str = option("arith", f"problems to train and test on: {', '.join(data.DATASETS)}, or a file *.jsonl")
    data_dir: str = option("", "folder with the data set's files; none: a cache, filled by a download")
    grader: str = option(
        "rules", "who compares an answer that is no number: reward.py's rules alone, or math-verify too", GRADERS
    )
    prompt_template: str = option("", "prompt with {question} in it; none: the checkpoint's own chat template")
    out: str = option("", "folder to write to; none: runs/ and the time")

    skip_ratio: float | str = option(  # SKIP
        0.3,
        "share of all layers that a batch is sampled without, 0 to 1; auto: as --min-acceptance allows",
        high=1,
        word="auto",
    )
    min_acceptance: float = option(  # SKIP
        0.7, "acceptance of the batches that --skip-ratio auto keeps above", low=0.01, high=0.99
    )
    valid_layers: str = option(  # SKIP
        "measured", "layers that may be skipped: measured, by the acceptance, border:K, or a list such as 2,5,8-11"
    )
    bypass: str | None = option(  # SKIP
        None,
        "what a skipped layer becomes: the low-rank matrix or the mean closest to it, or the identity (default: "
        "linear; for the embedded model, which was trained to do without, identity)",
        ("linear", "mean", "identity"),
    )
    gradient: str = option("is", "weight of each token, the correction for sampling elsewhere", tuple(WEIGHTS))
    cap: float = option(2.0, "importance weights, the kinds named is…, are truncated here; 0: not at all")
    retrace_lambda: float = option(1.0, "λ of Retrace, 0 to 1", high=1)
    advantage: str = option("grpo", "baseline of a group's rewards", ("grpo", "mean", "rloo"))
    normaliser: str = option("tokens", "Z of the loss: tokens or completions of the batch, or a number")

    steps: int = option(60, "batches of reinforced fine-tuning")
    prompts: int = option(8, "problems a batch", low=1)
    samples: int = option(8, "completions a problem, its group", low=2)
    max_new_tokens: int = option(128, "tokens of a completion at most; one that does not end earns 0", low=1)
    temperature: float = option(1.0, "τ of sampling and of the policy that is trained", low=0.01)
    lr: float | None = option(None, "learning rate of AdamW (default: 1e-5; for the embedded model 1e-4)")
    lr_warmup_steps: int = option(5, "steps over which the rate rises linearly")
    max_grad_norm: float = option(1.0, "the gradient is clipped to this norm; 0: not at all")
    micro_batch_tokens: int = option(
        2048, "tokens of a forward and backward pass, prompts and padding too; changes memory, not the gradient", low=1
    )

    warmup_epochs: int | None = option(
        None,
        "epochs of supervised learning on the rationales before the reinforced steps (default: 0; for the embedded "
        "model, which knows arith alone, 20 on other problems)",
    )
    warmup_lr: float | None = option(None, "its peak learning rate (default: 1e-4; for the embedded model 1e-3)")
    warmup_batch: int = option(16, "problems a step of the warm-up", low=1)
    layer_dropout: float = option(  # SKIP
        0.0, "share of the layers without which the warm-up teaches the nested models too, rising to it", high=1
    )

    eval_every: int = option(20, "steps between evaluations on the test split, besides before and after", low=1)
    eval_problems: int = option(500, "problems of an evaluation at most", low=1)
    save_every: int = option(20, "steps between checkpoints, in the warm-up too", low=1)
    keep: int = option(2, "checkpoints to keep: the last one and, beside it, older ones", low=1)
    dtype: str = option("float32", "of the forward and backward passes; AdamW is float32", ("float32", "bfloat16"))
    gradient_checkpointing: bool = option(False, "compute in the backward pass again what else fills the memory")
    device: str = option("auto", "cpu, cuda, cuda:1 or mps; auto: the best there is")
    seed: int = option(0, "of the order of the problems, the masks and the completions", high=2**31 - 1)

    def __post_init__(self):
        """Raises ValueError that names the flag, what was given and what was expected."""
        for f in fields(self):
            value, choices, low, high = getattr(self, f.name), *(f.metadata[key] for key in ("choices", "low", "high"))
            given = f"--{f.name.replace('_', '-')} is {value!r}"
            undecided = value is None and f.default is None
            if value and value == f.metadata["word"]:
                continue
            if not undecided and not isinstance(value, (int, float) if kind(f) is float else kind(f)):
                raise ValueError(f"{given}; expected {kind(f).__name__}")
            if choices and not undecided and value not in choices:
                raise ValueError(f"{given}; expected one of {', '.join(choices)}")
            if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(
                    f"{given}; expected {low} or more"
                    if high == math.inf
                    else f"{given}; expected a number from {low} to {high}"
                    + f" or {f.metadata['word']}" * bool(f.metadata["word"])
                )
        normaliser(torch.ones(1, 1), self.normaliser)

    def decided(self) -> "Settings":
        """With the defaults that depend on the model in place of None."""
        embedded = not self.model or Path(self.model).resolve() == data.EMBEDDED.resolve()
        defaults = {
            "bypass": "identity" if embedded else "linear",
            "lr": 1e-4 if embedded else 1e-5,
            "warmup_lr": 1e-3 if embedded else 1e-4,
            "warmup_epochs": 20 if embedded and self.dataset != "arith" else 0,
        }
        decided = replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})
        if decided.layer_dropout and not decided.warmup_epochs:  # SKIP
            raise ValueError(
                f"--layer-dropout is {self.layer_dropout}; expected --warmup-epochs too, to drop layers in"
            )
        return decided


def parse(arguments: list[str] | None, description: str) -> tuple[dict, bool]:
    """The settings that were given, by name, and whether to resume."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for f in fields(Settings):
        notes = [", ".join(f.metadata["choices"])] if f.metadata["choices"] else []
        notes += [f"default: {f.default}"] if f.default not in ("", None) and kind(f) is not bool else []
        help = f.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
        flag = f"--{f.name.replace('_', '-')}"
        if kind(f) is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=help)
        else:
            parser.add_argument(
                flag,
                type=partial(number_or_word, f) if f.metadata["word"] else kind(f),
                default=argparse.SUPPRESS,
                help=help,
                metavar="X",
            )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, as if it had not stopped")
    given = vars(parser.parse_args(arguments))
    return given, given.pop("resume")


def number_or_word(f: Field, text: str) -> float | str:
    try:
        return text if text == f.metadata["word"] else kind(f)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {f.metadata['word']!r}") from None


def settings_of(given: dict) -> Settings:
    """The settings of the run in --out. Whatever else is given has to be the same: another setting is another run."""
    if not given.get("out"):
        raise ValueError("--resume needs --out, the folder of the run to go on with")
    config = Path(os.path.expanduser(given["out"])) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"--resume: no run in {given['out']} ({config.name} is not there)")
    try:
        s = Settings(**json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config}: not the settings of a run ({error})") from None
    for name, value in given.items():
        if name != "out" and value != getattr(s, name):
            raise ValueError(
                f"--resume with --{name.replace('_', '-')} {value!r}: the run in {given['out']} has "
                f"{getattr(s, name)!r}; leave the flag out, or begin another run"
            )
    return replace(s, out=given["out"])
