"""AdamW on float32 master weights."""

import math
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from model import Decoder
from support.distributed import anyone, gathered, local_shard, reduce_scatter, shard, single_process

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # what dcp says of one process


class Optimizer:
    """AdamW on float32 copies of the weights, the masters; after each step the model's own are rounded from them.

    In bfloat16 an update of 1e-6 would round to nothing (8 bits of mantissa); here it adds up until it shows. Gradients
    of micro-batches are added up in float32 as well. A float32 model is its own master, without a copy; but of several
    processes each has a slice of the masters, and of AdamW's moments.
    """

    def __init__(self, model: Decoder):
        self.names, self.working = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
        copies = self.working[0].dtype != torch.float32 or not single_process()
        self.masters = (
            [shard(p.detach()).to(torch.float32, copy=True) for p in self.working] if copies else list(self.working)
        )
        self.sums: list[Tensor | None] = [None] * len(self.masters)  # of gradients, where the masters are copies
        self.adamw = torch.optim.AdamW(self.masters, weight_decay=0.0)
        self.consistent = True  # False from when a step begins to move the weights until the run calls it a boundary

    def collect_gradients(self) -> None:
        """Adds the gradients up in float32. To be called after each backward pass. Those of float32 weights add up
        where they are."""
        for i, working in enumerate(self.working):
            if working.dtype != torch.float32 and working.grad is not None:
                gradient = working.grad.float()
                self.sums[i] = gradient if self.sums[i] is None else self.sums[i].add_(gradient)
                working.grad = None

    def reduce_gradients(self) -> None:
        """Gives the masters the gradient of the whole batch: of several processes each has a part of it."""
        for i, (master, working) in enumerate(zip(self.masters, self.working, strict=True)):
            if master is not working:  # a process without a micro-batch has no sum
                mine = working.grad if working.dtype == torch.float32 else self.sums[i]
                working.grad = self.sums[i] = None
                master.grad = reduce_scatter(torch.zeros_like(working, dtype=torch.float32) if mine is None else mine)

    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clips, steps, forgets the gradient; returns its norm before clipping. Where that is 0 nothing moves, not even
        by AdamW's momentum. FloatingPointError if it is not finite."""
        self.reduce_gradients()
        norm = gathered(torch.nn.utils.clip_grad_norm_(self.masters, max_grad_norm or math.inf)).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        if norm == 0:
            self.adamw.zero_grad()
            return norm
        self.consistent = False
        for group in self.adamw.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            self.adamw.step()
            self.adamw.zero_grad()
            for master, working in zip(self.masters, self.working, strict=True):
                if master is not working:
                    working.copy_(gathered(master.to(working.dtype)))  # rounded before it travels
        return norm

    def finite(self) -> bool:
        """Whether all weights and moments are."""
        moments = (tensor for state in self.adamw.state.values() for tensor in state.values())
        return not anyone(not all(local_shard(tensor).isfinite().all() for tensor in (*self.masters, *moments)))

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
                dcp.save(state, storage_writer=writer, no_dist=single_process())
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
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=single_process())
        self.adamw.load_state_dict({"state": moments, "param_groups": self.adamw.state_dict()["param_groups"]})
