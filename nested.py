"""Nested models worth sampling from: which layers may go, how many, and what a skipped layer becomes.

Everything that needs a model and exists because layers are skipped. A mask itself needs none (skip.py, D1-D3); here
the valid layers of D2 are measured, and D3's identity gives way to a `Bypass`. docs/method.md has reasons and sources.

    measure, Nested          all that is measured; it depends on the weights and the arguments alone
    Bypass, fit_bypass       what a skipped block adds to its input, in closed form
    Measured, order_layers   the order in which layers can be left out, by the acceptance Σ min(π, η)
    most_layers              how many, on masks drawn as training draws them
    save, read               what is kept of it beside a checkpoint

    L layers   C hidden_size   R rank   B rows   T tokens   m completion tokens   V vocabulary
"""

import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from model import Block, Decoder
from rollout import LOGITS, generate, hidden_after, log_softmax, pack, read_prompts, score_states
from skip import sample_mask
from support.distributed import silent
from support.pretrained import digest, write_safetensors

PROBE = 8  # problems that the layers are measured on
COUNT = 32  # problems that the number of layers is measured on, the PROBE ones among them
FIT = 128  # other problems, that a bypass is fitted on
LOOK = 64  # tokens of each completion that layers are measured on, at most
RIDGE = 0.01  # of the mean square of what a bypass is fitted on
MASKS = 10  # different ones that a measured set of valid layers allows, at least
KEPT = 0.5  # layers that alone keep less of the acceptance are skipped only if so many are asked for
DRAWN = 10  # masks on which the number of layers is measured
WANTED = 0.65  # the lowest sequence acceptance that --skip-ratio auto allows


@dataclass
class Nested:
    """What a model's nested models are made from, besides its `bypass`."""

    step: int  # measured just before this step
    n_skipped: int  # layers that a mask skips
    layers: "Measured | None"  # None: the valid layers are given
    of: str  # the `stamp` of what it was measured on; empty if it is not cached


@torch.no_grad()
def measure(
    model: Decoder,
    prompts: list[list[int]],
    max_new_tokens: int,
    eos_ids: list[int],
    temperature: float,
    bypass: str,
    valid: list[int] | None,
    n_skipped: int | None,
    full_prompt: bool,
) -> tuple[int, "Measured | None"]:
    """Fits the model's bypass, orders its layers, and chooses how many to skip; all on its own completions.

    prompts: the first PROBE order the layers, the first COUNT say how many, the last FIT fit the bypass; where there
        are too few, some do both.
    bypass: as --bypass.  valid: the valid layers, None to measure them.  n_skipped: layers to skip, None to measure it.
    full_prompt: as in `generate`: the bypass is fitted on completions alone then.
    -> layers to skip, and the measured layers. Depends on weights and arguments alone, on nothing measured before.
    """
    length = max_new_tokens if n_skipped is None else min(max_new_tokens, LOOK)
    completions = own_completions(model, prompts, length, eos_ids, temperature)
    model.bypass = bypass_of(model, bypass, prompts[-FIT:], completions[-FIT:], full_prompt)
    if valid is not None and n_skipped is not None:
        return n_skipped, None
    n_layers = model.config.num_hidden_layers

    with tqdm(desc="measuring nested models", unit=" masks", leave=False, disable=silent()) as bar:

        def acceptance_on(n: int, length: int, of: Callable) -> Callable[[tuple[bool, ...]], float]:
            """Maps a mask to the acceptance of the nested model on n completions: of(full model's states, …)(its)."""
            tokens, mask = (x[:, :length] for x in pack(completions[:n], model.device))
            by_full = read_prompts(model, prompts[:n])
            against = of(hidden_after(model, by_full, tokens, mask), tokens, mask)

            def acceptance(skip: tuple[bool, ...]) -> float:
                bar.update()
                read = by_full if full_prompt else read_prompts(model, prompts[:n], skip)
                return against(hidden_after(model, read, tokens, mask, skip))

            return acceptance

        def of_tokens(full: Tensor, *_) -> Callable[[Tensor], float]:
            return lambda nested: overlap(full, nested, model.lm_head.weight, temperature)

        def of_completions(full: Tensor, tokens: Tensor, mask: Tensor) -> Callable[[Tensor], float]:
            def logprobs(states: Tensor) -> Tensor:
                return score_states(model, states, tokens, mask, temperature)[0]

            target = logprobs(full)
            return lambda nested: sequence_acceptance(target, logprobs(nested))

        layers = order_layers(acceptance_on(PROBE, LOOK, of_tokens), n_layers) if valid is None else None
        if n_skipped is None:
            acceptance = acceptance_on(COUNT, max_new_tokens, of_completions)
            n_skipped = most_layers(acceptance, n_layers, valid if layers is None else layers)
    return n_skipped, layers


# ---- what a skipped layer becomes


@dataclass
class Bypass:
    """What is added instead of a skipped block's update: a low-rank matrix times its normalised input, and a vector.

    The first position has a vector alone: the attention of all others comes to rest on it, and its states are unlike
    theirs (Xiao et al., 2023; Sun et al., 2024). Rank R costs 2·R·C multiplications a token, a block about 12·C².
    """

    down: Tensor  # (L, R, C)
    up: Tensor  # (L, C, R)
    bias: Tensor  # (L, 2, C): of the first position, and of all others

    def to(self, device) -> "Bypass":
        return Bypass(*(tensor.to(device) for tensor in vars(self).values()))

    def __call__(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, C) at positions (B or 1, T) -> (B, T, C)."""
        first, others = self.bias[layer]
        update = F.linear(F.linear(x, self.down[layer]), self.up[layer], others)
        return torch.where((positions == 0)[..., None], first, update)


@torch.no_grad()
def fit_bypass(model: Decoder, tokens: Tensor, mask: Tensor, rank: int) -> Bypass:
    """The bypass that comes closest to what the blocks add on these rows; rank 0: their mean.

    tokens, mask: (B, T), rows that end early padded on the right; positions outside the mask do not count. By least
    squares over all positions but the first ones: of all maps of that rank from a block's normalised input to its
    update, the one with the least error (reduced-rank regression; Izenman, 1975), up to a small ridge.
    """
    parts, exact = [], torch.promote_types(model.dtype, torch.float32)
    home = model.device if model.device.type in ("cpu", "cuda") else torch.device("cpu")  # Apple's GPU has no eigh
    mask = mask.to(home)

    def fit(block: Block, arguments: tuple, output: Tensor) -> None:
        update, x = (output - arguments[0]).to(home, exact), block.input_layernorm(arguments[0]).to(home, exact)
        first, update, x = update[:, 0].mean(0), update[:, 1:][mask[:, 1:]], x[:, 1:][mask[:, 1:]]  # (C,), (n, C)
        mean, mean_x = update.mean(0), x.mean(0)
        update, x = update - mean, x - mean_x
        gram, cross = x.T @ x, x.T @ update  # (C, C)
        gram.diagonal().add_((RIDGE * gram.diagonal().mean()).clamp(min=1e-6))  # all 0 where all tokens are one
        matrix = torch.linalg.solve(gram, cross)  # update ≈ x matrix
        _, vectors = torch.linalg.eigh(cross.T @ matrix)  # of the fitted updates' second moments, ascending
        up = vectors[:, len(gram) - rank :]  # (C, R): where most of the fitted updates lie
        down = (matrix @ up).T
        parts.append((down, up, torch.stack((first, mean - up @ (down @ mean_x)))))

    hooks = [block.register_forward_hook(fit) for block in model.model.layers]
    try:
        model.hidden(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return Bypass(*(torch.stack(part).to(model.device, model.dtype) for part in zip(*parts, strict=True)))


def bypass_of(
    model: Decoder, kind: str, prompts: list[list[int]], completions: list[list[int]], full_prompt: bool
) -> Bypass | None:
    """The bypass that --bypass names, fitted on these sequences of token ids, or on the completions in them where the
    full model reads the prompts; None for the identity."""
    if kind == "identity":
        return None
    whole = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, mask = pack(whole, model.device)
    if full_prompt:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        mask &= torch.arange(mask.shape[1], device=model.device) >= lengths[:, None]
    return fit_bypass(model, tokens, mask, rank=model.config.hidden_size // 4 if kind == "linear" else 0)


# ---- which layers may go


@dataclass(frozen=True)
class Measured:
    """What skipping does to a model's acceptance, the mean of Σ min(π, η) over the tokens of a few completions.

    alone: with layer 0, 1, … skipped alone.  order: the layers in the order in which they can be left out.
    together: with the first 1, 2, … of them skipped.
    """

    alone: list[float]
    order: list[int]
    together: list[float]

    def valid_layers(self, n_skipped: int) -> list[int]:
        """D2 by measurement: the shortest beginning of `order` with MASKS masks or more, or all that may go."""
        most = max(n_skipped, self.most)
        n = next((n for n in range(n_skipped, most) if math.comb(n, n_skipped) >= MASKS), most)
        return sorted(self.order[:n])

    @property
    def most(self) -> int:
        """How many layers keep KEPT of the acceptance when skipped alone; more are skipped only if asked for."""
        return sum(kept >= KEPT for kept in self.alone)

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
        masks = math.comb(len(valid), n_skipped)
        lines += [
            f"Each batch skips {n_skipped} of these {len(valid)} layers: {masks:,} masks. "
            f"The other {len(self.order) - len(valid)} stay.",
            "The shares are of the nested model's tokens that the full model would accept.",
            "Each next layer costs the least together with all before it: one that is cheap",
            "alone may stay.",
        ]
        return "\n".join(["", *lines, ""])


def order_layers(acceptance: Callable[[tuple[bool, ...]], float], n_layers: int) -> Measured:
    """Orders the layers by what skipping them does: acceptance maps a mask to the acceptance under it.

    Greedy: next comes the layer whose loss, with all before it skipped as well, is the least; two that are harmless
    alone may hurt together.  A loss is measured again only when it seems the least: losses grow as more is skipped,
    nearly always, which spares most of the L²/2 measurements (Minoux's accelerated greedy algorithm, 1978).
    """

    def skipping(layers: list[int]) -> float:
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
    return Measured(alone, order, together[1:])


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


# ---- how many


def sequence_acceptance(target: Tensor, behaviour: Tensor) -> float:
    """The share of η's completions that π would accept, from log π and log η (N, T) of π's completions, 0 behind them:
    E_η[Π_t min(1, π/η)] = Σ_y Π_t min(π, η) = E_π[Π_t min(1, η/π)]."""
    return (behaviour - target).clamp(max=0).sum(dim=1).exp().mean().item()


def most_layers(acceptance: Callable[[tuple[bool, ...]], float], n_layers: int, valid: list[int] | Measured) -> int:
    """The most layers to skip: of DRAWN masks, drawn as training draws them, the mean acceptance is WANTED or more.

    valid: the valid layers, of which the first number fails after which too many are skipped; or the measured ones.
    These depend on how many are skipped: fewer are drawn from a larger set, with worse layers, so the search comes from
    above, from the longest beginning of the order that itself keeps WANTED.
    """

    def keeps(k: int) -> bool:
        layers = valid.valid_layers(k) if isinstance(valid, Measured) else valid
        generator, lost = torch.Generator().manual_seed(0), 0.0
        for _ in range(DRAWN):
            lost += 1 - acceptance(sample_mask(n_layers, k / n_layers, layers, generator))
            if lost > DRAWN * (1 - WANTED):  # the masks that remain cannot make up for it
                return False
        return True

    if not isinstance(valid, Measured):
        return sum(1 for _ in takewhile(keeps, range(1, len(valid) + 1)))

    def best_keep(k: int) -> bool:
        return acceptance(tuple(layer in valid.order[:k] for layer in range(n_layers))) >= WANTED

    most = sum(1 for _ in takewhile(best_keep, range(1, valid.most + 1)))
    return next((k for k in range(most, 0, -1) if keeps(k)), 0)


# ---- what is kept


def stamp(model: Decoder, *facts) -> str:
    """SHA-256 of all that a measurement depends on: weights, dtype, and the facts given (settings, prompts)."""
    return digest(model.parameters(), *facts, str(model.dtype))


def save(path: Path, bypass: Bypass | None, nested: Nested | None) -> None:
    """Writes what was measured, if anything. Raises OSError."""
    if nested is None:
        return
    tensors = {} if bypass is None else vars(bypass).copy()
    if nested.layers:
        tensors |= {name: torch.from_numpy(np.array(figures)) for name, figures in asdict(nested.layers).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"step": nested.step, "n_skipped": nested.n_skipped, "of": nested.of}
    with tempfile.TemporaryDirectory(dir=path.parent) as own:  # another run may be reading, or writing
        write_safetensors(tensors, Path(own, path.name), {"nested": json.dumps(facts)})  # one text keeps its order
        os.replace(Path(own, path.name), path)


def read(path: Path, model: Decoder) -> tuple[Bypass | None, Nested | None]:
    """What `save` wrote: a bypass for this model, and the rest; None for what is not there.

    Raises ValueError that names the file where it is broken.
    """
    if not path.is_file():
        return None, None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["nested"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        bypass = [tensors[f.name].to(model.device, model.dtype, copy=True) for f in fields(Bypass) if f.name in tensors]
        layers = [tensors[f.name].tolist() for f in fields(Measured) if f.name in tensors]
        measured = Measured(*layers) if layers else None
        nested = Nested(facts["step"], facts["n_skipped"], measured, facts["of"])
        return Bypass(*bypass) if bypass else None, nested
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a whole measurement ({error!r})") from None
