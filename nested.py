"""Nested models worth sampling from: which layers may go, and what a skipped layer becomes, measured on the model.

The definitions are in skip.py. Here D2's valid layers are the ones whose absence changes the fewest tokens, and a
`Bypass` is fitted to each layer. docs/method.md has reasons and sources.

    NestedModels               measures before some steps, and hands out the mask of every step
    LayerOrder, order_layers   the order in which layers can be left out, by the acceptance Σ min(π, η)
    Measurement, save, read    what was measured, in a checkpoint or beside --model

    L layers   C hidden_size   m completion tokens   V vocabulary
"""

import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from data import Problem, draw_problems
from model import Decoder
from rollout import completion_hidden, generate, log_softmax, prefill
from skip import Bypass, fit_bypass, parse_valid_layers, sample_mask
from support import lora
from support.batches import pad_right
from support.distributed import broadcast, from_rank_0, no_bar, on_rank_0
from support.fast import LOGITS
from support.pretrained import digest, find_checkpoint, write_safetensors
from support.provenance import MEASURED_BY, code
from support.settings import Settings
from support.tokenizer import Tokenizer

PROBE = 8  # problems that the layers are measured on
FIT = 128  # other problems, that a bypass is fitted on
MEASURED_TOKENS = 64  # of each completion, at most
LEAST_MASKS = 10  # there are at least so many valid layers that they allow this many masks
LEAST_ALONE = 0.5  # a layer may go if this acceptance is left without it; others only if so many are asked for
TOO_FAR = 0.05  # sequence acceptance of the first batch below which a warning is due


class NestedModels:
    """The nested models of a run: measured now and then, a mask for every step.

    A measurement depends on the weights, the train problems and the settings alone, not on the ones before it.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, problems: list[Problem], s: Settings):
        """Raises ValueError for a --skip-ratio that --valid-layers do not allow."""
        self.model, self.tokenizer, self.problems, self.settings = model, tokenizer, problems, s
        self.n_layers = n = model.config.num_hidden_layers
        self.valid = None if s.valid_layers == "measured" else parse_valid_layers(s.valid_layers, n)  # D2 as given
        if self.valid == [] and s.skip_ratio:
            raise ValueError(f"--valid-layers {s.valid_layers} leaves none of the model's {n} layers to skip")
        first = sample_mask(n, s.skip_ratio, range(n) if self.valid is None else self.valid, torch.Generator())
        self.n_skipped = sum(first)
        self.measured: Measurement | None = None

    @property
    def bypass(self) -> Bypass | None:
        """What a skipped layer becomes; None: the identity."""
        return self.measured.bypass if self.measured else None

    def skip_mask(self, step: int) -> tuple[bool, ...]:
        """D3: the mask of a step, a function of seed and step."""
        valid = self.valid or []
        if self.measured and self.measured.order:
            valid = self.measured.order.valid_layers(self.n_skipped)
        generator = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + step) % 2**32)  # it takes 32 bits
        return sample_mask(self.n_layers, self.n_skipped / self.n_layers, valid, generator)

    def is_due(self, step: int) -> bool:
        """Whether to measure before this step: before 1, N + 1, 2N + 1, … (--measure-every), if there is anything to
        measure."""
        asked = self.n_skipped > 0 and (self.valid is None or self.settings.bypass != "identity")
        return asked and (self.measured is None or self.measured.step != self.last_due(step))

    def last_due(self, step: int) -> int:
        return step - (step - 1) % self.settings.measure_every

    def measure(self, step: int) -> None:
        """Measures on a few train problems, and prints the layers. A measurement of the unchanged weights of --model is
        cached in its folder, and the next run reads it from there."""
        s = self.settings
        n = min(PROBE + FIT * (s.bypass != "identity"), len(self.problems))
        prompts = [self.tokenizer.encode_prompt(p.question) for p in draw_problems(self.problems, n, step=1, seed=0)]
        unchanged = s.model and step == 1 and not s.warmup_epochs and not s.adapter
        cached = find_checkpoint(s.model) / "nested" / "measured.safetensors" if unchanged else None
        if step == 1:
            tqdm.write(f"measuring nested models on {n} problems: which layers may go (bypass: {s.bypass})")
        facts = s.max_new_tokens, self.tokenizer.eos_ids, s.temperature, s.bypass, s.prefill, self.valid, self.n_skipped
        of = from_rank_0(lambda: fingerprint(lora.merged(self.model), prompts, *facts) if cached else "")
        found = from_rank_0(lambda: read_cached(cached, self.model))
        if found and found.of == of:
            self.measured = replace(found.to(self.model.device), step=step)
        else:
            self.measured = Measurement(self.last_due(step), *self.fit_and_order(prompts), of)
            on_rank_0(lambda: write_cached(cached, self.measured))
        if self.measured.order:
            tqdm.write(self.measured.order.table(self.n_skipped))

    @torch.no_grad()
    def fit_and_order(self, prompts: list[list[int]]) -> tuple[Bypass | None, "LayerOrder | None"]:
        """The bypass, and the order of the layers, from the model's own completions of the prompts: the first PROBE
        order the layers, the last FIT fit the bypass; where there are too few, some do both."""
        s, model = self.settings, self.model
        completions = own_completions(
            model, prompts, min(s.max_new_tokens, MEASURED_TOKENS), self.tokenizer.eos_ids, s.temperature
        )
        full_prefill = s.prefill == "full"
        bypass = fit_on_completions(model, s.bypass, prompts[-FIT:], completions[-FIT:], full_prefill)
        for tensor in vars(bypass).values() if bypass else ():
            broadcast(tensor)
        if self.valid is not None:
            return bypass, None
        accepted = acceptance_of_masks(model, prompts[:PROBE], completions[:PROBE], bypass, full_prefill, s.temperature)
        order = order_layers(accepted, self.n_layers)
        return bypass, from_rank_0(lambda: order)


def warn_if_too_far(figures: dict) -> None:
    """Says that the first batch of a run is too far off to learn from."""
    if figures["skipped_layers"] and figures["sequence_acceptance"] < TOO_FAR:
        warnings.warn(
            f"the full model would accept {figures['sequence_acceptance']:.0%} of the completions sampled without "
            f"{len(figures['skipped_layers'])} layers: too little to learn from; skip less (--skip-ratio)",
            stacklevel=1,
        )


# ---- what is measured, and on what


def own_completions(
    model: Decoder, prompts: list[list[int]], length: int, eos_ids: list[int], temperature: float
) -> list[list[int]]:
    """One completion of each prompt by the full model, of `length` tokens at most, from streams that no step draws
    from."""
    rollout = generate(model, prompts, 1, length, eos_ids, temperature=temperature, seed=2**31)
    return [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]


def overlap(x: Tensor, y: Tensor, weight: Tensor, temperature: float = 1.0) -> float:
    """The mean over m tokens of Σ min(p, q) = 1 − TV(p, q), the share of q's tokens that p would accept, for
    p = softmax(x weightᵀ/τ) and q = softmax(y weightᵀ/τ), x and y (m, C). About LOGITS logits at a time."""
    total, size = 0.0, math.ceil(LOGITS / len(weight))
    for some_x, some_y in zip(x.split(size), y.split(size), strict=True):
        p, q = (log_softmax(F.linear(states, weight), temperature).exp() for states in (some_x, some_y))
        total += torch.minimum(p, q).sum().item()
    return total / len(x)


def fit_on_completions(
    model: Decoder, kind: str, prompts: list[list[int]], completions: list[list[int]], full_prefill: bool
) -> Bypass | None:
    """The bypass that --bypass names, fitted on these sequences of token ids, or on the completions in them where the
    full model reads the prompts; None for the identity."""
    if kind == "identity":
        return None
    sequences = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, mask = pad_right(sequences, model.device)
    if full_prefill:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        mask &= torch.arange(mask.shape[1], device=model.device) >= lengths[:, None]
    return fit_bypass(model, tokens, mask, rank=model.config.hidden_size // 4 if kind == "linear" else 0)


def acceptance_of_masks(
    model: Decoder,
    prompts: list[list[int]],
    completions: list[list[int]],
    bypass: Bypass | None,
    full_prefill: bool,
    temperature: float,
) -> Callable[[tuple[bool, ...]], float]:
    """Maps a mask to the acceptance of the nested model, on given completions."""
    tokens, mask = pad_right(completions, model.device)
    by_full = prefill(model, prompts)
    full = completion_hidden(model, by_full, tokens, mask)

    def of_mask(skip: tuple[bool, ...]) -> float:
        read = by_full if full_prefill else prefill(model, prompts, skip, bypass)
        nested = completion_hidden(model, read, tokens, mask, skip, bypass)
        return overlap(full, nested, model.lm_head.weight, temperature)

    return of_mask


# ---- which layers may go


@dataclass(frozen=True)
class LayerOrder:
    """The order in which layers can be left out, by the acceptance that remains: the mean of Σ min(π, η) over tokens.

    alone: with layer 0, 1, … skipped alone.  order: the layers in the order in which they can be left out.
    together: with the first 1, 2, … of them skipped.
    """

    alone: list[float]
    order: list[int]
    together: list[float]

    def valid_layers(self, n_skipped: int) -> list[int]:
        """D2 by measurement: the shortest prefix of `order` that allows LEAST_MASKS masks, or else all that may go."""
        most = max(n_skipped, self.most)
        n = next((n for n in range(n_skipped, most) if math.comb(n, n_skipped) >= LEAST_MASKS), most)
        return sorted(self.order[:n])

    @property
    def most(self) -> int:
        """How many layers keep LEAST_ALONE of the acceptance when skipped alone; more are skipped only if asked for."""
        return sum(kept >= LEAST_ALONE for kept in self.alone)

    def table(self, n_skipped: int) -> str:
        """The valid layers for n_skipped, in the order in which they can be left out, 12 a line, and how to read it."""
        valid, lines = self.order[: len(self.valid_layers(n_skipped))], []
        for start in range(0, len(valid), 12):
            layers = valid[start : start + 12]
            rows = {
                "layer": map(str, layers),
                "accepted without it": (f"{self.alone[layer]:.2f}" for layer in layers),
                "and all before": (f"{together:.2f}" for together in self.together[start : start + len(layers)]),
            }
            lines += [f"{name:19}" + "".join(f"{cell:>5}" for cell in cells) for name, cells in rows.items()]
        masks, others = math.comb(len(valid), n_skipped), len(self.order) - len(valid)
        return "\n".join([
            "", *lines,
            f"Each batch skips {n_skipped} of these {len(valid)} layers: {masks:,} masks. The other {others} stay.",
            "Numbers: the share of the nested model's tokens that the full model accepts.",
            "Layers are chosen greedily: each one is the cheapest to add to those before it.", "",
        ])  # fmt: skip


def order_layers(acceptance: Callable[[tuple[bool, ...]], float], n_layers: int) -> LayerOrder:
    """Orders the layers by what skipping them does: acceptance maps a mask to the acceptance under it.

    Greedy: next comes the layer whose loss, with all before it skipped as well, is the least; two that are harmless
    alone may hurt together.  A loss is measured again only when it seems the least: losses grow as more is skipped,
    nearly always, which spares most of the L²/2 measurements (Minoux's accelerated greedy algorithm, 1978).
    """

    bar = tqdm(desc="measuring nested models", unit=" masks", leave=False, disable=no_bar())

    def skipping(layers: list[int]) -> float:
        bar.update()
        return acceptance(tuple(layer in layers for layer in range(n_layers)))

    alone = [skipping([layer]) for layer in range(n_layers)]
    loss = {layer: 1 - kept for layer, kept in enumerate(alone)}
    order, together = [], [1.0]
    while loss:
        fresh = set() if order else set(loss)
        while (layer := min(loss, key=loss.get)) not in fresh:
            loss[layer] = together[-1] - skipping([*order, layer])
            fresh.add(layer)
        order.append(layer)
        together.append(together[-1] - loss.pop(layer))
    bar.close()
    return LayerOrder(alone, order, together[1:])


# ---- what is kept


@dataclass(frozen=True)
class Measurement:
    """What a model's nested models are made from."""

    step: int  # before which it was made
    bypass: Bypass | None  # what a skipped layer becomes; None: the identity
    order: LayerOrder | None  # None: the valid layers are given
    of: str  # the `fingerprint` of what it was made on; empty if it is not cached

    def to(self, device) -> "Measurement":
        return replace(self, bypass=self.bypass and self.bypass.to(device))


def fingerprint(model: Decoder, *facts) -> str:
    """SHA-256 of all that a measurement depends on: weights, dtype, code, and the facts given (prompts, settings)."""
    return digest(model.parameters(), *facts, str(model.dtype), code(MEASURED_BY))


def save(path: Path, measured: Measurement | None) -> None:
    """Writes what was measured, if anything. Raises OSError."""
    if measured is None:
        return
    tensors = vars(measured.bypass).copy() if measured.bypass else {}
    if measured.order:
        tensors |= {name: torch.from_numpy(np.array(figures)) for name, figures in asdict(measured.order).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"step": measured.step, "of": measured.of}
    with tempfile.TemporaryDirectory(dir=path.parent) as own:  # another run may be reading, or writing
        write_safetensors(tensors, Path(own, path.name), {"nested": json.dumps(facts)})  # one text keeps its order
        os.replace(Path(own, path.name), path)


def read(path: Path, model: Decoder) -> Measurement | None:
    """What `save` wrote, for this model; None where there is nothing.

    Raises ValueError that names the file where it is broken.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["nested"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        bypass = [tensors[f.name].to(model.device, model.dtype, copy=True) for f in fields(Bypass) if f.name in tensors]
        order = [tensors[f.name].tolist() for f in fields(LayerOrder) if f.name in tensors]
        return Measurement(
            facts["step"], Bypass(*bypass) if bypass else None, LayerOrder(*order) if order else None, facts["of"]
        )
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a whole measurement ({error!r})") from None


def read_cached(path: Path | None, model: Decoder) -> Measurement | None:
    """What is cached beside --model, on the CPU; None where there is nothing, or it is broken."""
    try:
        found = read(path, model) if path else None
        return found and found.to("cpu")
    except (ValueError, OSError) as error:
        warnings.warn(f"{error}; measured again", stacklevel=1)
        return None


def write_cached(path: Path | None, measured: Measurement) -> None:
    try:
        if path:
            save(path, measured)
    except OSError as error:
        warnings.warn(f"what was measured cannot be kept beside the model: {error}", stacklevel=1)
