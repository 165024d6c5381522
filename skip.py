"""Which layers a nested model leaves out, and what they become: the definitions D1-D3 of the method. Every line here
exists for skipping.

D1  the layers of a model are 0 … L−1, each a whole block (attention and MLP with their residuals);
D2  the valid layers are those that may be skipped: measured (nested.py), an explicit list, or all but `border` on each
    side;
D3  a mask skips round(ratio · L) of them, drawn uniformly without replacement; a skipped block is the identity.

A mask is a tuple of L bools, True = skipped, and is an argument of `Decoder.forward`. The trainer draws a new one for
every batch, so the behaviour policy of a whole run is the mixture over masks. The paper's identity may give way to a
`Bypass`: what is added instead of the block's update. To make something else of a skipped layer, change `Bypass` and
`fit_bypass`: `Decoder.hidden` calls the one, nested.py the other, by --bypass.

    L layers   C hidden_size   R rank of a bypass   B rows   T tokens
"""

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Block, Decoder

RIDGE = 0.01  # of the mean square of what a bypass is fitted on


def valid_layers(n_layers: int, border: int) -> list[int]:
    """D2 by distance: all layers but the first and the last `border`. May be empty: then no layer can be skipped."""
    if border < 0:
        raise ValueError(f"the border is {border}; expected 0 or more layers")
    return list(range(border, n_layers - border))


def parse_valid_layers(text: str, n_layers: int) -> list[int]:
    """D2 as typed: "border:K", or layers and ranges as in "2,5,8-11" (both ends included). Raises ValueError."""
    try:
        if text.startswith("border:"):
            return valid_layers(n_layers, int(text.removeprefix("border:")))
        layers = set()
        for part in text.split(","):
            first, dash, last = part.partition("-")
            first, last = int(first), int(last if dash else first)
            if not 0 <= first <= last < n_layers:
                raise ValueError(f"{part!r} is not a range of layers from 0 to {n_layers - 1}")
            layers.update(range(first, last + 1))
    except ValueError as error:
        said = str(error).replace("invalid literal for int() with base 10", "no number")
        raise ValueError(
            f"valid layers {text!r}: {said}; expected measured, border:K or a list such as 2,5,8-11"
        ) from None
    return sorted(layers)


def sample_mask(n_layers: int, ratio: float, valid: list[int], generator: torch.Generator) -> tuple[bool, ...]:
    """D3: a mask of L bools with round(ratio · L) valid layers skipped (Python's round: half to even).

    Raises ValueError where that asks for more layers than are valid; warns where a positive ratio comes to none.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"the skip ratio is {ratio}; expected a share of the layers from 0 to 1")
    if len(set(valid) & set(range(n_layers))) != len(valid):
        raise ValueError(f"the valid layers are {valid}; expected different ones from 0 to {n_layers - 1}")
    n_skipped = round(ratio * n_layers)
    if n_skipped > len(valid):
        raise ValueError(
            f"a skip ratio of {ratio} asks for {n_skipped} of {n_layers} layers, but only {len(valid)} may be skipped"
        )
    if ratio > 0 and n_skipped == 0:
        warnings.warn(f"a skip ratio of {ratio} of {n_layers} layers rounds to no layer at all", stacklevel=1)
    chosen = torch.randperm(len(valid), generator=generator)[:n_skipped].tolist()
    skipped = {valid[i] for i in chosen}
    return tuple(layer in skipped for layer in range(n_layers))


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
