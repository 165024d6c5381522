"""Exercise 5: the effective sample size, predicted and measured. The page is 05.md."""

import math
from itertools import islice

import pytest
import torch

import data
from data import arith
from losses import diagnostics, log_ratio
from rollout import completion_logprobs, generate
from support.pretrained import load_model

SKIPPED = ((3, 6), (1,), (1, 3, 6))  # layers of the embedded model
WITHIN = 2.5  # the factor that the prediction may be off by


@pytest.fixture(scope="module")
def measured():
    """By layers skipped: acceptance, variance of log ρ, mean length, effective sample size, and log ρ with its mask."""
    model, tokenizer = load_model(data.EMBEDDED, "float32", "cpu")
    prompts = [tokenizer.encode_prompt(problem.question) for problem in islice(arith.stream("train"), 24)]
    figures = {}
    for layers in SKIPPED:
        skip = [layer in layers for layer in range(model.config.num_hidden_layers)]
        rollout = generate(model, prompts, 4, 40, tokenizer.eos_ids, skip=skip, full_prefill=True)
        with torch.no_grad():
            target, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask)
        log_rho = log_ratio(target, rollout.logprobs, rollout.mask)
        found = diagnostics(log_rho, rollout.mask)
        figures[layers] = {
            "acceptance": found["acceptance"],
            "variance": log_rho[rollout.mask].double().var().item(),
            "length": rollout.mask.sum(dim=1).double().mean().item(),
            "ess": found["ess"],
            "log_rho": log_rho.double(),
            "mask": rollout.mask,
        }
    return figures


@pytest.mark.parametrize("sigma, T", [(0.1, 20), (0.2, 50), (0.3, 10)])
def test_where_the_assumption_holds_the_formula_does(answer, sigma, T):
    """log ρ_t independent and normal, with E[ρ] = 1: what is measured on a hundred thousand completions."""
    generator = torch.Generator().manual_seed(T)
    log_rho = sigma * torch.randn(100_000, T, generator=generator) - sigma**2 / 2
    found = diagnostics(log_rho, torch.ones(log_rho.shape, dtype=torch.bool))
    for name, got in {
        "ess_from_variance(σ², T)": answer.ess_from_variance(sigma**2, T),
        "ess_from_acceptance(a, T)": answer.ess_from_acceptance(found["acceptance"], T),
    }.items():
        assert got is not None and float(got) == pytest.approx(found["ess"], rel=0.1), (
            f"σ = {sigma}, acceptance {found['acceptance']:.4f}, T = {T}: "
            f"expected {name} = {found['ess']:.3f}, got {got}"
        )


def test_a_model_that_is_the_same_keeps_all(answer):
    for got in (answer.ess_from_variance(0.0, 100), answer.ess_from_acceptance(1.0, 100)):
        assert got == pytest.approx(1), f"nothing skipped: expected 1, got {got}"


def test_from_acceptance_it_predicts_the_embedded_model(answer, measured):
    for layers, its in measured.items():
        got = answer.ess_from_acceptance(its["acceptance"], its["length"])
        assert its["ess"] / WITHIN < got < its["ess"] * WITHIN, (
            f"without layers {layers}: acceptance {its['acceptance']:.3f}, length {its['length']:.1f}: "
            f"measured ess {its['ess']:.3f}, got {got:.3g}, more than {WITHIN:g} times off"
        )


@pytest.mark.parametrize("layers", SKIPPED[1:])
def test_where_the_other_one_fails(answer, measured, layers):
    """SMALL is a ratio: tokens below it make most of the variance of log ρ, and next to nothing of Σ W²."""
    log_rho, mask = measured[layers]["log_rho"], measured[layers]["mask"]
    assert isinstance(answer.SMALL, float) and 0 < answer.SMALL < 1, f"expected a ratio SMALL, got {answer.SMALL!r}"
    below = mask & (log_rho < math.log(answer.SMALL))
    squares = (log_rho - log_rho[mask].mean()).square()
    of_variance = (squares[below].sum() / squares[mask].sum()).item()
    weights = (2 * log_rho.sum(dim=1)).exp()
    of_weights = (weights[below.any(dim=1)].sum() / weights.sum()).item()
    assert of_variance >= 0.5 and of_weights <= 0.01, (
        f"without layers {layers}, tokens with ρ < {answer.SMALL:g} make {of_variance:.1%} of the variance of log ρ "
        f"(expected 50 % or more), and completions with such a token {of_weights:.1%} of Σ W² (expected 1 % or less)"
    )
