"""On an accelerator everything is as on the CPU, nothing mixes the two, and a decode step waits for nothing.

python -m pytest tests/test_device.py                                on a pretended one (accelerator.py)
NESTED_REFT_DEVICE=cuda python -m pytest tests/test_device.py        on a GPU
"""

import pytest
import torch
from accelerator import DEVICE, PRETENDED, Accelerator
from conftest import pay, small_model
from test_train import PROMPTS, REWARDS

import data
import run as run_module
import train
from losses import group_advantages
from rollout import generate
from support import lora, pretrained
from support.log import read
from support.optimizer import Optimizer
from support.settings import Settings

SKIP = (False, True, False, False)
ADAPTERS = "--lora-rank 2 --gradient-checkpointing --prefill nested --gradient retrace"


@pytest.fixture
def accelerator():
    with Accelerator() as entered:
        yield entered


def test_it_is_strict(accelerator):
    here, there = torch.arange(3.0), torch.arange(3.0, device=DEVICE)
    mixed_ones = [lambda: here + there, lambda: there[here.long()], lambda: here[there.long()]]
    mixed_ones += [lambda: there[[0, 2]]] * PRETENDED  # a list goes to a real one by itself
    for mixed in mixed_ones:
        with pytest.raises((AssertionError, RuntimeError)):
            mixed()
    assert accelerator.waits == 0
    there += here.to(DEVICE) * here[2]  # a copy, and a number of the CPU
    assert accelerator.waits == 0 and there.tolist() == [0, 3, 6] and (there > 1).any()
    assert accelerator.waits == 2


@pytest.mark.parametrize("full_prefill", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sampling_is_as_on_the_cpu_and_a_decode_step_does_not_wait(accelerator, full_prefill):
    """But once in eight tokens for which rows have ended: a copy."""
    model, expected, waits = small_model(torch.float32), {}, {}
    for length in (9, 25):
        expected[length] = generate(model, PROMPTS, 4, length, [], skip=SKIP, seed=0, full_prefill=full_prefill)
    model.to(DEVICE)
    for length in (9, 25):
        before = accelerator.waits
        sampled = generate(model, PROMPTS, 4, length, [], skip=SKIP, seed=0, full_prefill=full_prefill)
        waits[length] = accelerator.waits - before
        assert sampled.tokens.device == DEVICE and sampled.tokens.tolist() == expected[length].tokens.tolist()
        atol = 1e-5 if PRETENDED else 1e-4  # a card was seen to differ by 1.3e-5
        torch.testing.assert_close(sampled.logprobs.cpu(), expected[length].logprobs, atol=atol, rtol=0)
    assert waits[9] > 0 and waits[25] - waits[9] == 2


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["all weights", "adapters"])
def test_steps_are_as_on_the_cpu(accelerator, rank):
    """Rows that have ended leave; a gradient and a step of AdamW; what it samples then."""

    def steps(device) -> tuple[list[dict], list[torch.Tensor]]:
        model = small_model(torch.float32)
        if rank:
            lora.add(model, rank)
        optimizer, figures = Optimizer(model.to(device)), []
        for seed in range(2):
            rollout = generate(model, PROMPTS, 4, 9, [0, 1], skip=SKIP, seed=seed, full_prefill=True)
            advantages = group_advantages(REWARDS.to(device), "grpo").flatten()
            update = train.update(model, optimizer, rollout, advantages, Settings(micro_batch_tokens=60), 1e-3)
            figures.append(update[0])
        return figures, [parameter.detach().cpu() for parameter in model.parameters()]

    (figures, weights), (figures_there, weights_there) = steps("cpu"), steps(DEVICE)
    for here, there in zip(figures, figures_there, strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-5)
    for here, there in zip(weights, weights_there, strict=True):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", ["", pytest.param(ADAPTERS, marks=pytest.mark.slow)])
def test_a_run_is_as_on_the_cpu(checkpoint, tmp_path, monkeypatch, flags):
    """Warm-up, measured nested models with their bypass, sampling, updates, evaluation, checkpoints.

    Not --resume: for torch.distributed.checkpoint the pretended device has nothing to load into."""
    pay(monkeypatch, lambda text, p, g: len(text) % 2)
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: load(*given)[:6])
    flags = [
        *flags.split(),
        *"--prompts 3 --samples 4 --max-new-tokens 6 --eval-problems 1 --steps 2 --skip-ratio 0.5".split(),
    ]
    flags += f"--model {checkpoint} --warmup-epochs 1 --warmup-lr 1e-4 --micro-batch-tokens 300".split()
    assert train.main([*flags, "--device", "cpu", "--out", str(tmp_path / "cpu")]) == 0
    if PRETENDED:
        for module in (pretrained, run_module):
            monkeypatch.setattr(module, "pick_device", lambda name: DEVICE)
    with Accelerator() as accelerator:
        device = "auto" if PRETENDED else str(DEVICE)
        assert train.main([*flags, "--device", device, "--out", str(tmp_path / "there")]) == 0
    assert accelerator.waits > 0
    for here, there in zip(read(tmp_path / "cpu"), read(tmp_path / "there"), strict=True):
        for name in ("reward", "skipped_layers", "mean_length"):
            assert there[name] == here[name], (name, here["step"])
        for name in (
            "loss",
            "grad_norm",
            "acceptance",
            "ess",
        ):  # AdamW makes a step of what a gradient of 0 is rounded to
            same = there[name] == here[name]  # None too
            assert same or there[name] == pytest.approx(here[name], rel=0.1, abs=1e-4), (name, here["step"])
