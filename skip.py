"""Which layers a nested model leaves out: the definitions D1-D3 of the method. Every line here exists for skipping.

D1  the layers of a model are 0 … L−1, each a whole block (attention and MLP with their residuals);
D2  the valid layers are those that may be skipped: measured, an explicit list, or all but `border` on each side;
D3  a mask skips round(ratio · L) of them, drawn uniformly without replacement.

A mask is a tuple of L bools, True = skipped, and is an argument of `Decoder.forward`. The trainer draws a new one for
every batch, so the behaviour policy of a whole run is the mixture over masks.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

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


MASKS = 100  # different ones that a measured set of valid layers allows, at least
LOST = 0.5  # a layer cannot be done without where less than this is accepted


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
        return sorted(self.order[: next((n for n in range(n_skipped, most) if comb(n, n_skipped) >= MASKS), most)])

    @property
    def most(self) -> int:
        """Layers that alone can be done without; the others are skipped only where so many are asked for."""
        return sum(kept >= LOST for kept in self.alone)


def measure(acceptance: Callable[[tuple[bool, ...]], float], n_layers: int) -> Measured:
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
        """Whether the mean has fallen by a twentieth: what was measured is of a model that is no more."""
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
