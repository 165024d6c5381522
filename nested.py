"""Nested models worth sampling from: which layers may go, how many, and what a skipped layer becomes.

Everything that needs a model and exists because layers are skipped. A mask itself needs none (skip.py, D1-D3); here
the valid layers of D2 are measured, and D3's identity gives way to a `Bypass`. docs/method.md has reasons and sources.

    Bypass, fit_bypass       what a skipped block adds to its input, in closed form
    measure_layers           the order in which layers can be left out, by the acceptance Σ min(π, η)
    Watch                    how many to skip while the model changes
    save, read               what is kept of it beside a checkpoint

    L layers   C hidden_size   R rank   B rows   T tokens   m completion tokens   V vocabulary
"""

import math
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model import Block, Decoder
from rollout import LOGITS, completion_hidden, generate, log_softmax, pack

PROBE = 16  # problems that the layers are measured on
FIT = 64  # other problems, that a bypass is fitted on
LOOK = 64  # tokens of a completion that are looked at for either
RIDGE = 0.01  # of the mean square of what a bypass is fitted on
MASKS = 100  # different ones that a measured set of valid layers allows, at least
LOST = 0.5  # a layer that loses this share of the acceptance is not skipped unless so many are asked for


# ---- what a skipped layer becomes


@dataclass
class Bypass:
    """What skipped blocks add in place of their update: a low-rank matrix times their normalised input, and a vector.

    The first position has a vector alone: the attention of all others comes to rest on it, and its states are unlike
    theirs (Xiao et al., 2023; Sun et al., 2024). Rank R costs 2·R·C multiplications a token, a block about 12·C².
    """

    down: Tensor  # (L, R, C)
    up: Tensor  # (L, C, R)
    bias: Tensor  # (L, 2, C): of the first position, and of all others

    def __call__(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, C) at positions (B or 1, T) -> (B, T, C)."""
        first, others = self.bias[layer]
        update = F.linear(F.linear(x, self.down[layer]), self.up[layer], others)
        return torch.where((positions == 0)[..., None], first, update)


@torch.no_grad()
def fit_bypass(model: Decoder, tokens: Tensor, mask: Tensor, rank: int) -> Bypass:
    """The bypass that comes closest to what the blocks add on these rows; rank 0: their mean.

    tokens, mask: (B, T), rows that end early padded on the right. By least squares over all positions but the first
    ones: of all maps of that rank from a block's normalised input to its update, the one with the least error
    (reduced-rank regression; Izenman, 1975), up to a small ridge.
    """
    parts = []

    def fit(block: Block, arguments: tuple, output: Tensor) -> None:
        exact = torch.promote_types(output.dtype, torch.float32)
        update, x = (output - arguments[0]).to(exact), block.input_layernorm(arguments[0]).to(exact)
        first, update, x = update[:, 0].mean(0), update[:, 1:][mask[:, 1:]], x[:, 1:][mask[:, 1:]]  # (C,), (n, C)
        mean, mean_x = update.mean(0), x.mean(0)
        update, x = update - mean, x - mean_x
        gram, cross = x.T @ x, x.T @ update  # (C, C)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
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
    return Bypass(*(torch.stack(part).to(model.dtype) for part in zip(*parts, strict=True)))


def bypass_of(model: Decoder, kind: str, prompts: list[list[int]], completions: list[list[int]]) -> Bypass | None:
    """The bypass that --bypass names, fitted on these sequences of token ids; None for the identity."""
    if kind == "identity":
        return None
    whole = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return fit_bypass(model, *pack(whole, model.device), rank=model.config.hidden_size // 4 if kind == "linear" else 0)


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
        """D2 by measurement: the fewest of the first layers that allow MASKS different masks, or all that may go."""
        most = max(n_skipped, self.most)
        n = next((n for n in range(n_skipped, most) if math.comb(n, n_skipped) >= MASKS), most)
        return sorted(self.order[:n])

    @property
    def most(self) -> int:
        """Layers that alone can be done without; the others are skipped only if so many are asked for."""
        return sum(kept >= LOST for kept in self.alone)

    def table(self, n_skipped: int) -> str:
        """The valid layers for n_skipped, in the order in which they can be left out."""
        n = len(self.valid_layers(n_skipped))
        rows = {
            "layer": [str(layer) for layer in self.order[:n]],
            "accepted without it": [f"{self.alone[layer]:.2f}" for layer in self.order[:n]],
            "and those before": [f"{together:.2f}" for together in self.together[:n]],
        }
        lines = [f"{name:20}" + "".join(f"{cell:>5}" for cell in cells) for name, cells in rows.items()]
        others = ", ".join(f"{layer} ({self.alone[layer]:.2f})" for layer in sorted(self.order[n:]))
        masks = f"{n_skipped} of these are skipped: {math.comb(n, n_skipped):,} masks"
        return "\n".join(["", *lines, masks + (f"; never {others}" if others else ""), ""])


@torch.no_grad()
def measure_layers(
    model: Decoder, prompts: list[list[int]], completions: list[list[int]], temperature: float
) -> Measured:
    """The order in which the model's layers, with its bypass in their place, can be left out on these completions."""
    tokens, mask = pack(completions, model.device)
    full = completion_hidden(model, prompts, tokens, mask)

    def acceptance(skip: tuple[bool, ...]) -> float:
        states = completion_hidden(model, prompts, tokens, mask, skip)
        return divergence(full, states, model.lm_head.weight, temperature)[1].item()

    return order_layers(acceptance, model.config.num_hidden_layers)


def order_layers(acceptance: Callable[[tuple[bool, ...]], float], n_layers: int) -> Measured:
    """Orders the layers by what skipping them does: acceptance maps a mask to the acceptance under it.

    Greedy: next comes the layer whose loss, with all before it skipped as well, is the least; for what is harmless
    alone may not be together.  A loss is measured again only when it seems the least: losses grow as more is skipped,
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
    model: Decoder, prompts: list[list[int]], max_new_tokens: int, eos_ids: list[int], temperature: float
) -> list[list[int]]:
    """One completion of each prompt by the full model, of LOOK tokens at most, from streams that no step draws from."""
    length = min(max_new_tokens, LOOK)
    rollout = generate(model, prompts, 1, length, eos_ids, temperature=temperature, seed=2**31)
    return [row[kept].tolist() for row, kept in zip(rollout.tokens, rollout.mask, strict=True)]


def divergence(x: Tensor, y: Tensor, weight: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """How far q = softmax(y weightᵀ/τ) is from p = softmax(x weightᵀ/τ), x and y (m, C): the means over the m tokens
    of KL(p‖q) and, detached, of Σ min(p, q) = 1 − TV(p, q), the share of q's tokens that p would accept.

    The gradient is that of q alone: p is what q is to become (distillation; Hinton et al., 2015). The logits, about
    LOGITS at a time, are computed again in the backward pass.
    """

    def compare(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        log_p = log_softmax(F.linear(x, weight).detach(), temperature)
        log_q, p = log_softmax(F.linear(y, weight), temperature), log_p.exp()
        return (p * (log_p - log_q)).sum(), torch.minimum(p, log_q.detach().exp()).sum()

    size = math.ceil(LOGITS / len(weight))
    parts = [
        checkpoint(compare, *part, weight, use_reentrant=False, preserve_rng_state=False)
        for part in zip(x.split(size), y.split(size), strict=True)
    ]
    kl, overlap = (torch.stack(each).sum() / len(x) for each in zip(*parts, strict=True))
    return kl, overlap


# ---- how many


@dataclass
class Watch:
    """How many layers to skip while a model changes, by the acceptance of its batches.

    The rule, with a wanted acceptance A: `mean` is the running mean of the acceptance at the present number of layers
    k, over about eight batches.  Where it is below A after two of them, one layer fewer is skipped.  Where it has been
    above for four, and would still be above with one more if what is lost, 1 − mean, grew in proportion to k, one more
    is skipped, though not within ten batches of a step down.  Each change of k begins a new mean.
    """

    n_skipped: int
    mean: float = 1.0
    batches: int = 0  # in the mean
    best: float = 0.0  # highest mean at this k since the measurement
    hold: int = 0  # batches before k may grow again

    def see(self, acceptance: float) -> None:
        self.batches += 1
        self.mean += (acceptance - self.mean) / min(self.batches, 8)
        self.hold = max(0, self.hold - 1)
        if self.batches >= 4:
            self.best = max(self.best, self.mean)

    def drifted(self) -> bool:
        """Whether the mean has fallen by a twentieth: the measurement is out of date."""
        return self.mean < self.best - 0.05

    def adapt(self, wanted: float, most: int) -> None:
        """Takes k one up or down, by the rule; at most `most`."""
        k = self.n_skipped
        grown = 1 - (1 - self.mean) * (k + 1) / max(k, 1)
        if self.batches >= 2 and self.mean < wanted:
            k, self.hold = k - 1, 10
        elif self.batches >= 4 and self.hold == 0 and grown >= wanted and k < most:
            k += 1
        if k != self.n_skipped:
            self.n_skipped, self.mean, self.batches, self.best = k, 1.0, 0, 0.0


# ---- what is kept


def stamp(model: Decoder, *settings) -> str:
    """What a measurement depends on: settings, and the weights by the first row of each."""
    weights = 0
    for parameter in model.parameters():
        weights = zlib.crc32(parameter.detach()[:1].float().cpu().numpy().tobytes(), weights)
    return repr((*settings, weights))


def save(folder: Path, bypass: Bypass | None, measured: Measured | None, of: str) -> None:
    """Writes what was measured, if anything, into folder/nested: a directory of its own, since whoever serves the model
    reads all *.safetensors beside config.json.  of: its `stamp`."""
    tensors = {} if bypass is None else vars(bypass).copy()
    if measured:
        tensors |= {name: torch.from_numpy(np.array(figures)) for name, figures in asdict(measured).items()}
    if tensors:
        (folder / "nested").mkdir(exist_ok=True)
        save_file(tensors, folder / "nested" / "measured.safetensors", metadata={"of": of})


def read(folder: Path, model: Decoder, of: str | None = None) -> tuple[Bypass | None, Measured | None]:
    """What `save` wrote: a bypass for this model, and the measured layers; None for what is not there.

    of: the `stamp` that it must have; another one counts as nothing there. None, in a resume: any, for it may be of
    earlier weights. A broken file is an error in a resume, else a warning. Raises ValueError that names the file.
    """
    path, tensors = folder / "nested" / "measured.safetensors", {}
    try:
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if of is None or (file.metadata() or {}).get("of") == of:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        if of is None:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
        warnings.warn(f"{path}: not a whole safetensors file ({error}), measured again", stacklevel=1)
    bypass = [tensors[f.name].to(model.device, model.dtype) for f in fields(Bypass) if f.name in tensors]
    measured = [tensors[f.name].tolist() for f in fields(Measured) if f.name in tensors]
    return Bypass(*bypass) if bypass else None, Measured(*measured) if measured else None
