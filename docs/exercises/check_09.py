"""Exercise 9: a new random draw that survives a resume. The page is 09.md."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import pay

import data
import train
from data import arith
from docs import tiny

LOW, HIGH = 0.7, 1.3
FLAGS = [
    *"--device cpu --dtype float32 --prompts 2 --samples 3 --max-new-tokens 4 --lr 0.01 --eval-every 4".split(),
    *"--eval-problems 2 --save-every 2 --skip-ratio 0.5 --valid-layers border:1 --bypass identity".split(),
]


def draw(answer, seed: int, step: int) -> float:
    got = answer.temperature(seed, step)
    assert isinstance(got, float) and LOW <= got <= HIGH, (
        f"temperature({seed}, {step}): expected a float from {LOW} to {HIGH}, got {got!r}"
    )
    return got


def test_four_steps_at_once_are_two_and_two(answer):
    """The second half is drawn in a new process, which knows the seed and the step and nothing else."""
    at_once = [draw(answer, 0, step) for step in (1, 2, 3, 4)]
    first, second = answer.again(), answer.again()
    halves = [draw(first, 0, step) for step in (1, 2)] + [draw(second, 0, step) for step in (3, 4)]
    assert halves == at_once, f"steps 1 to 4 at once: {at_once}; 1 and 2, then 3 and 4 in a new process: {halves}"


def test_it_depends_on_nothing_that_was_drawn_before(answer):
    """Not on the order of the calls, and not on the state of anybody's generator."""
    expected = [draw(answer, 5, step) for step in range(1, 9)]
    for place in (random.seed, np.random.seed, torch.manual_seed):
        place(999)
    got = [draw(answer, 5, step) for step in range(8, 0, -1)][::-1]
    assert got == expected, f"expected {expected} in any order of the steps, got {got}"


def test_it_leaves_other_generators_alone(answer):
    """Whoever draws after it must draw what they would have drawn."""

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    draw(answer, 3, 3)
    for name, one, other in zip(("random", "numpy", "torch"), before, states(), strict=True):
        assert one == other, f"expected the global generator of {name} as it was, got another state"


def test_every_step_and_every_seed_draws_anew(answer):
    """100 seeds, 100 steps: seed + step would give seed 1 the draws of seed 0, one step later."""
    draws = {(seed, step): draw(answer, seed, step) for seed in range(100) for step in range(1, 101)}
    seen, same = {}, []
    for key, temperature in draws.items():
        same += [(temperature, seen[temperature], key)] if temperature in seen else []
        seen.setdefault(temperature, key)
    assert len(same) < 100, (  # some of 10,000 draws in float32 are equal by chance
        f"expected different draws, got {len(same)} that came before: {same[0][0]:.4f} for (seed, step) = {same[0][1]} "
        f"and {same[0][2]}"
    )
    values = np.array(list(draws.values())).reshape(100, 100)
    middle, spread = (LOW + HIGH) / 2, (HIGH - LOW) / 12**0.5
    assert abs(values.mean() - middle) < 0.02 and abs(values.std() - spread) < 0.02, (
        f"expected uniform draws, of mean {middle} and deviation {spread:.3f}, "
        f"got {values.mean():.3f} and {values.std():.3f}"
    )
    for name, one, other in (("step", values[:, 1:], values[:, :-1]), ("seed", values[1:], values[:-1])):
        together = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(together) < 0.1, f"expected no correlation from one {name} to the next, got {together:.2f}"


def run(answer, folder, model, *flags) -> None:
    """train.py, with π and η of each step at the temperature that the answer draws for it."""
    seed, now = 7, {}
    sample, score = train.generate, train.completion_logprobs

    def generate(model, prompts, n, length, eos, temperature, **given):
        step = (given["seed"] - seed * 2**32) // len(prompts)
        now["temperature"] = draw(answer, seed, step)
        return sample(model, prompts, n, length, eos, now["temperature"], **given)

    def logprobs(model, prompts, tokens, mask, temperature):
        return score(model, prompts, tokens, mask, now["temperature"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, split, folder: list(islice(arith.stream(split), 20)))
        patch.setattr(train, "generate", generate)
        patch.setattr(train, "completion_logprobs", logprobs)
        pay(patch, lambda text, p, g: len(text) % 2 == 0)  # a random model earns it now and then
        status = train.main([*FLAGS, "--seed", str(seed), "--model", str(model), "--out", str(folder), *flags])
    assert status == 0, f"expected the run to end well, got the status {status}"


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_four_steps_is_a_run_of_two_and_a_resumed_one(answer, tmp_path):
    """Bit for bit: every weight of the model."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    model = tiny.build(tmp_path / "model", vocab_size=300, **sizes)
    run(answer.again(), tmp_path / "whole", model, "--steps", "4")
    run(answer.again(), tmp_path / "halves", model, "--steps", "2")
    run(answer.again(), tmp_path / "halves", model, "--steps", "4", "--resume")
    one, other, start = (
        train.Decoder.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "whole" / "checkpoint", tmp_path / "halves" / "checkpoint", model)
    )
    assert any(not torch.equal(one[name], start[name]) for name in one), "the run did not move the weights"
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, (
        f"expected the same weights after 2 + 2 steps, got others in {len(different)} of {len(one)} tensors"
    )
