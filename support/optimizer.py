"""AdamW on float32 master weights; and for fast sampling a twin of the model in oneDNN's layout on a CPU, a captured
decode step on a GPU."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from model import Decoder, KVCache
from support.distributed import added_slice, alone, anyone, local, sliced, whole

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # what dcp says of one process


class Optimizer:
    """AdamW on float32 copies of the weights, the masters; after each step the model's own are rounded from them.

    In bfloat16 an update of 1e-6 would round to nothing (8 bits of mantissa); here it adds up until it shows. Gradients
    of micro-batches are added up in float32 as well. A float32 model is its own master, without a copy; but of several
    processes each has a slice of the masters, and of AdamW's moments.
    """

    def __init__(self, model: Decoder):
        self.names, self.working = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
        copies = self.working[0].dtype != torch.float32 or not alone()
        self.masters = (
            [sliced(p.detach()).to(torch.float32, copy=True) for p in self.working] if copies else list(self.working)
        )
        self.sums: list[Tensor | None] = [None] * len(self.masters)  # of gradients, where the masters are copies
        self.adamw = torch.optim.AdamW(self.masters, weight_decay=0.0)
        self.whole = True  # False while a step is taken: half of one is no state to save

    def collect_gradients(self) -> None:
        """Adds the gradients up in float32. To be called after each backward pass. Those of float32 weights add up
        where they are."""
        for i, working in enumerate(self.working):
            if working.dtype != torch.float32 and working.grad is not None:
                gradient = working.grad.float()
                self.sums[i] = gradient if self.sums[i] is None else self.sums[i].add_(gradient)
                working.grad = None

    def add_up(self) -> None:
        """Gives the masters the gradient of the whole batch: of several processes each has a part of it."""
        for i, (master, working) in enumerate(zip(self.masters, self.working, strict=True)):
            if master is not working:  # a process without a micro-batch has no sum
                mine = working.grad if working.dtype == torch.float32 else self.sums[i]
                working.grad = self.sums[i] = None
                master.grad = added_slice(torch.zeros_like(working, dtype=torch.float32) if mine is None else mine)

    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clips, steps, forgets the gradient; returns its norm before clipping. Where that is 0 nothing moves, not even
        by AdamW's momentum. FloatingPointError if it is not finite."""
        self.add_up()
        norm = whole(torch.nn.utils.clip_grad_norm_(self.masters, max_grad_norm or math.inf)).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        if norm == 0:
            self.adamw.zero_grad()
            return norm
        self.whole = False
        for group in self.adamw.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            self.adamw.step()
            self.adamw.zero_grad()
            for master, working in zip(self.masters, self.working, strict=True):
                if master is not working:
                    working.copy_(whole(master.to(working.dtype)))  # rounded before it travels
        self.whole = True
        return norm

    def finite(self) -> bool:
        """Whether all weights and moments are."""
        moments = (tensor for state in self.adamw.state.values() for tensor in state.values())
        return not anyone(not all(local(tensor).isfinite().all() for tensor in (*self.masters, *moments)))

    def state(self) -> dict[str, Tensor]:
        """What the model's own weights do not say: AdamW's moments and steps, and the masters of bfloat16 weights."""
        tensors = {}
        for name, master, working in zip(self.names, self.masters, self.working, strict=True):
            tensors |= {f"{key}.{name}": value for key, value in self.adamw.state[master].items()}
            if working.dtype != torch.float32:
                tensors[f"master.{name}"] = master
        return tensors

    def save(self, folder: Path) -> None:
        """`state()` as safetensors, a file of each process with its slices. Raises OSError."""
        if state := self.state():
            writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
            try:
                dcp.save(state, storage_writer=writer, no_dist=alone())
            except CheckpointException as error:  # of any rank
                cause = next(iter(error.failures.values()))[0]
                raise OSError(f"{folder}: {cause}") from None

    def load(self, folder: Path) -> None:
        """Takes over what `save` wrote, on as many processes or on others. ValueError where it is of another model."""
        stored = {}
        if folder.is_dir():
            stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        tensors, moments = {}, {}
        for i, (name, master, working) in enumerate(zip(self.names, self.masters, self.working, strict=True)):
            if working.dtype != torch.float32:
                tensors[f"master.{name}"] = master.detach()
            if f"step.{name}" in stored:  # none before the first step
                moments[i] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(master.detach())}
                moments[i]["exp_avg_sq"] = torch.zeros_like(master.detach())
                tensors |= {f"{key}.{name}": value for key, value in moments[i].items()}
        if tensors.keys() != stored.keys() or any(tensors[key].shape != stored[key].size for key in tensors):
            raise ValueError(f"{folder}: of another model, or not whole")
        if tensors:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone())
        self.adamw.load_state_dict({"state": moments, "param_groups": self.adamw.state_dict()["param_groups"]})


def packed(model: Decoder, rows: int) -> Decoder:
    """A model that samples faster, about `rows` rows at a time: the same numbers from the same weights, but each matrix
    is held once more in oneDNN's own layout, so that no product has to convert it again.

    For bfloat16 on a CPU; elsewhere it is the model itself. Without a gradient, and good until the weights change.
    """
    pays = model.dtype == torch.bfloat16 and model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return twin(model, nn.Linear, lambda linear: PackedLinear(linear, rows)) if pays else model


def twin(module: nn.Module, kind: type, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same module with what `change` makes of each part of that kind; all other weights are shared."""
    if isinstance(module, kind):
        return change(module)
    other = copy.copy(module)
    other._modules = {name: twin(child, kind, change) for name, child in module._modules.items()}
    return other


class PackedLinear(nn.Module):
    """A linear layer whose matrix has oneDNN's layout for `rows` rows (what inductor's freezing does as well)."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")


class CapturedStep:
    """A decode step of n rows as one CUDA graph: its kernels, fifty a layer, start together and not one by one.

    Shapes and addresses in a graph are fixed. So the cache `hold`s all its columns, and where rows leave, the step has
    to be captured anew. Without a gradient, and good until the weights move elsewhere.
    """

    def __init__(self, model: Decoder, cache: KVCache, skip, n: int):
        self.token = torch.zeros((n, 1), dtype=torch.int64, device=model.device)
        self.graph = torch.cuda.CUDAGraph()
        cache.hold()
        with torch.cuda.device(model.device):  # streams and graphs are the current one's
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # what a first call sets up cannot be captured; the token is written over
                model(self.token, cache, skip)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph):
                self.logits = model(self.token, cache, skip)[:, 0]  # (n, V)
                cache.at += 1

    def __call__(self, token: Tensor) -> Tensor:
        """token (n,) -> logits (n, V), which the next call writes over."""
        self.token.copy_(token[:, None])
        self.graph.replay()
        return self.logits
