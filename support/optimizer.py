"""AdamW on float32 master weights; and a twin of the model in oneDNN's layout, for fast sampling on a CPU."""

import copy
import math

import torch
from torch import Tensor, nn

from model import Decoder


class Optimizer:
    """AdamW on float32 copies of the weights, the masters; after each step the model's own are rounded from them.

    In bfloat16 an update of 1e-6 would round to nothing (8 bits of mantissa); here it adds up until it shows. Gradients
    of micro-batches are added up in float32 as well. A float32 model is its own master, without a copy.
    """

    def __init__(self, model: Decoder):
        self.names, self.working = zip(*model.named_parameters(), strict=True)
        copies = self.working[0].dtype != torch.float32
        self.masters = [p.detach().float() for p in self.working] if copies else list(self.working)
        self.adamw = torch.optim.AdamW(self.masters, weight_decay=0.0)
        self.whole = True  # False while a step is taken: half of one is no state to save

    def collect_gradients(self) -> None:
        """Adds the gradients to the masters', in float32. To be called after each backward pass."""
        for master, working in zip(self.masters, self.working, strict=True):
            if master is not working and working.grad is not None:
                gradient = working.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                working.grad = None

    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clips, steps, forgets the gradient; returns its norm before clipping. FloatingPointError if not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters, max_grad_norm or math.inf).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        self.whole = False
        for group in self.adamw.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            self.adamw.step()
            self.adamw.zero_grad()
            for master, working in zip(self.masters, self.working, strict=True):
                if master is not working:
                    working.copy_(master)
        self.whole = True
        return norm

    def finite(self) -> bool:
        """Whether all weights and moments are."""
        moments = (tensor for state in self.adamw.state.values() for tensor in state.values())
        return all(tensor.isfinite().all() for tensor in (*self.masters, *moments))

    def state(self) -> dict[str, Tensor]:
        """What the model's own weights do not say: AdamW's moments and steps, and the masters where they are copies."""
        tensors = {}
        for name, master, working in zip(self.names, self.masters, self.working, strict=True):
            tensors |= {f"{key}.{name}": value for key, value in self.adamw.state[master].items()}
            if master is not working:
                tensors[f"master.{name}"] = master
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over the `state()` of another one. KeyError or RuntimeError where it is of another model."""
        moments = {}
        for i, (name, master, working) in enumerate(zip(self.names, self.masters, self.working, strict=True)):
            if master is not working:
                master.copy_(tensors[f"master.{name}"])
            if f"step.{name}" in tensors:  # none before the first step
                moments[i] = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.adamw.load_state_dict({"state": moments, "param_groups": self.adamw.state_dict()["param_groups"]})


def packed(model: Decoder, rows: int) -> Decoder:
    """A model that samples faster, about `rows` rows at a time: the same numbers from the same weights, but each matrix
    is held once more in oneDNN's own layout, so that no product has to convert it again.

    For bfloat16 on a CPU; elsewhere it is the model itself. Without a gradient, and good until the weights change.
    """
    pays = model.dtype == torch.bfloat16 and model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return with_packed_matrices(model, rows) if pays else model


def with_packed_matrices(module: nn.Module, rows: int) -> nn.Module:
    if isinstance(module, nn.Linear):
        return PackedLinear(module, rows)
    twin = copy.copy(module)
    twin._modules = {name: with_packed_matrices(child, rows) for name, child in module._modules.items()}
    return twin


class PackedLinear(nn.Module):
    """A linear layer whose matrix has oneDNN's layout for `rows` rows (what inductor's freezing does as well)."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
