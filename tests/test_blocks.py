"""Blocks that are compiled, or computed again in the backward pass: the same numbers, whatever is skipped."""

import pytest
import torch
from conftest import small_model
from torch._dynamo.testing import CompileCounterWithBackend

from rollout import completion_logprobs, generate


@pytest.mark.slow
def test_ten_masks_compile_nothing_that_one_has_not():
    """Compiled by block, sampling and learning: a graph of the whole model would be another one for every mask."""
    model, counter = small_model(torch.float32, num_hidden_layers=6), CompileCounterWithBackend("aot_eager")
    model.compile_blocks(counter)
    counts = []
    for first in range(10):
        skip = tuple(layer in (first % 6, (first + 1 + first // 6) % 6) for layer in range(6))
        rollout = generate(model, [[1, 2, 3], [4]], 2, 4, [], skip=skip)
        logprobs, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask)
        logprobs.sum().backward()
        counts.append(counter.frame_count)
    assert 0 < counts[0] == counts[-1] < 20


@pytest.mark.slow
def test_wrapped_blocks_compute_the_same():
    """Compiled or computed again: log-probabilities and gradients of the plain blocks."""
    results, skip = [], (False, True, False, False)
    for wrap in ("", "compile_blocks", "checkpoint_blocks"):
        model = small_model()
        if wrap:
            getattr(model, wrap)(*["aot_eager"][: wrap == "compile_blocks"])
        rollout = generate(model, [[1, 2, 3], [4]], 3, 5, [0], skip=skip)
        logprobs, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask, skip=skip)
        logprobs.sum().backward()
        gradients = [torch.zeros(1) if p.grad is None else p.grad for p in model.parameters()]
        results.append([rollout.tokens, logprobs, *gradients])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_blocks_compiled_for_the_machine_compute_the_same():
    """With the back end that --compile uses, in float32."""
    plain, compiled = small_model(torch.float32), small_model(torch.float32)
    compiled.compile_blocks()
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(compiled(tokens), plain(tokens), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="does not work here"):
        plain.compile_blocks("no such back end")


def test_checkpointed_blocks_keep_less_than_half():
    """Of what autograd saves in the forward pass of a long text."""
    saved = []
    for wraps in (False, True):
        model, sizes = small_model(torch.float32), {}
        if wraps:
            model.checkpoint_blocks()

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = model.hidden(torch.arange(200)[None] % 29)
        saved.append(sum(sizes.values()))
        kept.sum().backward()
    assert saved[1] < saved[0] / 2
