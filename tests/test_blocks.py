"""Blocks that are computed again in the backward pass: the same numbers for less memory."""

import pytest
import torch
from conftest import small_model

from rollout import completion_logprobs


@pytest.mark.parametrize("skip", [None, (False, True, False, False)])
def test_blocks_that_are_computed_again_give_the_same_gradient(skip):
    """Bit for bit, of completions that share the pass over their prompt; a second backward pass as well. A cache that a
    block wrote into would hold the completion's keys when the prompt's are computed again."""
    tokens = torch.arange(24).view(4, 6) % 29
    mask, results = torch.arange(6) < torch.tensor([6, 2, 5, 1])[:, None], []
    for again in (False, True):
        model = small_model()
        model.gradient_checkpointing = again
        logprobs, _ = completion_logprobs(model, [[1, 2, 3], [4], [4], [1, 2, 3]], tokens, mask, skip=skip)
        once, twice = (
            torch.autograd.grad(logprobs.sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
            for _ in range(2)
        )
        results.append([logprobs, *(g for g in once + twice if g is not None)])
    assert len(results[0]) == len(results[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_blocks_that_are_computed_again_keep_less_than_half():
    """Of what autograd saves in the forward pass of a long text."""
    saved = []
    for again in (False, True):
        model, sizes = small_model(torch.float32), {}
        model.gradient_checkpointing = again

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = model.hidden(torch.arange(200)[None] % 29)
        saved.append(sum(sizes.values()))
        kept.sum().backward()
    assert saved[1] < saved[0] / 2
