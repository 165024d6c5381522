"""The same numbers, faster or in less memory. Each has a plain twin, and a test holds the two equal.

TokenLogprobs   log π of tokens without all logits at a time       rollout.completion_logprobs_naive
packed          bfloat16 products on a CPU                         the model itself
CapturedStep    a decode step on a GPU as one graph                `Decoder.forward`

Without any of them nothing breaks: rollout.py, which calls them, is then slower or takes more memory.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache import KVCache
from model import Decoder

LOGITS = 128 * 49_152  # that exist at a time where tokens are compared with the whole vocabulary


class TokenLogprobs(torch.autograd.Function):
    """x (m, C), weight (V, C), targets (m,) -> log softmax(x weightᵀ/τ)[target] (m,), and the entropies (m,), detached.

    The logits, (m, V), would be the largest tensor of all. About LOGITS of them exist at a time, and the backward pass
    computes them again. The forward pass goes over the tokens; the backward pass over the vocabulary, so that a row of
    the weight's gradient is one product. With p the softmax, ∂ log p[target] / ∂ logits = (1[target] − p)/τ.
    """

    @staticmethod
    def logits(x: Tensor, weight: Tensor, temperature: float) -> Tensor:
        logits = F.linear(x, weight).to(torch.promote_types(x.dtype, torch.float32))
        return logits if temperature == 1 else logits.div_(temperature)

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs, entropy, total = [], [], []  # total: log Σ exp(logits)
        size = math.ceil(LOGITS / len(weight))
        for part, target in zip(x.split(size), targets.split(size), strict=True):
            logits = TokenLogprobs.logits(part, weight, temperature)
            top = logits.amax(dim=-1)
            p = (logits - top[:, None]).exp_()  # unnormalised
            total_p = p.sum(dim=-1)
            total.append(top + total_p.log())
            logprobs.append(logits.gather(1, target[:, None])[:, 0] - total[-1])
            entropy.append(total[-1] - torch.linalg.vecdot(p, logits) / total_p)
        ctx.save_for_backward(x, weight, targets, torch.cat(total))
        ctx.temperature = temperature
        entropy = torch.cat(entropy)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx, upstream: Tensor, _) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, targets, total = ctx.saved_tensors
        given = upstream / ctx.temperature  # (m,)
        to_x = torch.zeros_like(x, dtype=upstream.dtype)
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None  # a frozen head has no gradient
        size = math.ceil(LOGITS / len(x))
        for start in range(0, len(weight), size):
            part = weight[start : start + size]
            to_logits = TokenLogprobs.logits(x, part, ctx.temperature).sub_(total[:, None]).exp_().mul_(-given[:, None])
            rows = ((start <= targets) & (targets < start + size)).nonzero()[:, 0]  # whose target is among these
            to_logits[rows, targets[rows] - start] += given[rows]
            to_logits = to_logits.to(x.dtype)
            to_x += to_logits @ part
            if to_weight is not None:
                torch.mm(to_logits.T, x, out=to_weight[start : start + size])
        return to_x.to(x.dtype), to_weight, None, None


def packed(model: Decoder, rows: int) -> Decoder:
    """A model that samples faster, about `rows` rows at a time: the same numbers from the same weights, but each matrix
    is held once more in oneDNN's own layout, so that no product has to convert it again.

    For bfloat16 on a CPU; elsewhere it is the model itself. Without a gradient, and good until the weights change.
    """
    pays = model.dtype == torch.bfloat16 and model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return with_replaced(model, nn.Linear, lambda linear: PrepackedLinear(linear, rows)) if pays else model


def with_replaced(module: nn.Module, kind: type, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same module with what `change` makes of each part of that kind; all other weights are shared."""
    if isinstance(module, kind):
        return change(module)
    other = copy.copy(module)
    other._modules = {name: with_replaced(child, kind, change) for name, child in module._modules.items()}
    return other


class PrepackedLinear(nn.Module):
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

    def __init__(self, model: Decoder, cache: KVCache, skip, bypass, n: int):
        self.token = torch.zeros((n, 1), dtype=torch.int64, device=model.device)
        self.graph = torch.cuda.CUDAGraph()
        cache.hold()
        with torch.cuda.device(model.device):  # streams and graphs are the current one's
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # what a first call sets up cannot be captured; the token is written over
                model(self.token, cache, skip, bypass)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph):
                self.logits = model(self.token, cache, skip, bypass)[:, 0]  # (n, V)
                cache.next_column += 1

    def __call__(self, token: Tensor) -> Tensor:
        """token (n,) -> logits (n, V), which the next call writes over."""
        self.token.copy_(token[:, None])
        self.graph.replay()
        return self.logits
