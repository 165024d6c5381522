"""Which layers a nested model leaves out: the definitions D1-D3 of the method. Every line here exists for skipping.

D1  the layers of a model are 0 … L−1, each a whole block (attention and MLP with their residuals);
D2  the valid layers are those that may be skipped: measured, an explicit list, or all but `border` on each side;
D3  a mask skips round(ratio · L) of them, drawn uniformly without replacement.

A mask is a tuple of L bools, True = skipped, and is an argument of `Decoder.forward`. The trainer draws a new one for
every batch, so the behaviour policy of a whole run is the mixture over masks.
"""

import warnings

import torch


def valid_layers(n_layers: int, border: int) -> list[int]:
    """D2 by distance: all layers but the first and the last `border`. May be empty: then only 0 can be drawn."""
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
        raise ValueError(f"valid layers {text!r}: {error}; expected border:K or a list such as 2,5,8-11") from None
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
