"""Exercise 4: a weight of one's own, between bias and variance. The page is 04.md."""

import pytest
import test_theory as theory
import torch

import losses

KIND = "is-mine"


@pytest.fixture
def mine(answer, monkeypatch):
    """The student's weight as an entry of losses.WEIGHTS."""
    monkeypatch.setitem(losses.WEIGHTS, KIND, answer.log_weight)


@pytest.fixture(scope="module")
def scores(world):
    """(N, T, weights of the model): ∇ log π of each token."""
    scores = torch.zeros(*world.tokens.shape, len(theory.exact_gradient(world)), dtype=torch.float64)
    for row, t in world.mask.nonzero().tolist():
        scores[row, t] = theory.gradient(world, world.target[row, t])
    return scores


def bias_and_second_moment(world, scores, kind: str) -> tuple[float, float]:
    """The mean over masks of ‖E[g] − ∇J‖ / ‖∇J‖ and of E‖g‖² / ‖∇J‖², where g is one completion's gradient."""
    exact, bias, moment = theory.exact_gradient(world), 0.0, 0.0
    for m, share in enumerate(theory.SHARES.tolist()):
        weights = theory.weights_of(world, m, kind=kind, cap=None)
        g = torch.einsum("nt,ntp->np", weights * (world.rewards - theory.BASELINE)[:, None], scores)
        mean = world.probability[m] @ g
        bias += share * theory.relative(mean - exact, exact)
        moment += share * (world.probability[m] @ g.square().sum(dim=1) / exact.square().sum()).item()
    return bias, moment


def drawn(rows: int = 6, T: int = 9):
    mask = torch.arange(T) < torch.tensor([9, 1, 4, 7, 2, 9])[:rows, None]
    log_rho = torch.randn(rows, T, generator=torch.Generator().manual_seed(0)).where(mask, 0.0)
    return log_rho, mask


def digits(x) -> list[float]:
    return [round(each, 3) for each in x.tolist()]


def test_the_logarithm_is_0_where_nothing_is_skipped(answer):
    """π = η: every weight is 1, and so its logarithm 0."""
    mask = drawn()[1]
    got = answer.log_weight(torch.zeros(mask.shape), mask, 1.0)
    assert isinstance(got, torch.Tensor) and got.shape == mask.shape, (
        f"expected a tensor {tuple(mask.shape)}, got {got}"
    )
    assert (got[mask].abs() < 1e-6).all(), f"expected log w = 0 where log ρ = 0, got {digits(got[mask])}"


def test_a_completion_s_weights_are_its_own(answer):
    """They depend neither on the other rows nor on the padding, and what is given is left as it is."""
    log_rho, mask = drawn()
    given = log_rho.clone()
    whole = answer.log_weight(given, mask, 1.0)
    assert torch.equal(given, log_rho), "log ρ was written to; expected a new tensor"
    for row, T in enumerate(mask.sum(dim=1).tolist()):
        alone = answer.log_weight(log_rho[row : row + 1, :T], mask[row : row + 1, :T], 1.0)
        assert torch.allclose(alone[0], whole[row, :T], atol=1e-5), (
            f"row {row}: expected {digits(alone[0])} as without the other rows and the padding, "
            f"got {digits(whole[row, :T])}"
        )


def test_the_cap_bounds_it_at_any_length(mine):
    """Two thousand tokens, each e⁵ times as probable as under η, or as improbable."""
    log_rho = torch.stack((torch.full((2000,), 5.0), torch.full((2000,), -5.0)))
    weights = losses.gradient_weights(KIND, log_rho, torch.ones(2, 2000, dtype=torch.bool), cap=2.0)
    assert weights.isfinite().all() and (weights >= 0).all() and weights.max() <= 2 + 1e-6, (
        f"expected weights from 0 to 2, got {weights.min()} to {weights.max()}"
    )


def test_it_has_less_bias_than_every_biased_entry_of_the_table(mine, world, scores):
    others = {name: bias_and_second_moment(world, scores, name)[0] for name in losses.WEIGHTS if name != KIND}
    del others["is-sequence"]
    best, got = min(others, key=others.get), bias_and_second_moment(world, scores, KIND)[0]
    limit = 0.8 * others[best]
    assert got <= limit, f"expected a bias of {limit:.3f} at most (0.8 of the bias of {best}), got {got:.3f}"


def test_it_has_less_variance_than_the_unbiased_weight(mine, world, scores):
    limit = 0.9 * bias_and_second_moment(world, scores, "is-sequence")[1]
    got = bias_and_second_moment(world, scores, KIND)[1]
    assert got <= limit, f"expected a second moment of {limit:.1f} at most (0.9 of is-sequence's), got {got:.1f}"
