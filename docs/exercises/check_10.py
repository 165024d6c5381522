"""Exercise 10: the cap with the least mean squared error. The page is 10.md."""

import pytest
import test_theory as theory
import torch

MASK, SIZES = 3, (64, 512, 4096)  # both layers skipped; completions a batch


@pytest.fixture(scope="module")
def counted(world):
    """W (N,), η(y) (N,), each completion's (R − b) Σ_t ∇log π(y_t) (N, weights of the model), and ∇J."""
    terms = torch.stack([theory.gradient(world, world.target[row].sum()) for row in range(len(world.tokens))])
    terms = terms * (world.rewards - theory.BASELINE)[:, None]
    W = theory.weights_of(world, MASK, **theory.SEQUENCE)[:, 0]
    return W, world.probability[MASK], terms, theory.exact_gradient(world)


def of_cap(counted, cap: float) -> tuple[float, float]:
    """‖E[min(W, C) f] − ∇J‖² and E‖min(W, C) f‖², of one completion."""
    W, eta, terms, exact = counted
    g = W.clamp(max=cap)[:, None] * terms
    return (eta @ g - exact).square().sum().item(), (eta @ g.square().sum(dim=1)).item()


def of_batch(counted, cap: float, n: int) -> float:
    """E‖mean of n completions' g − ∇J‖² = bias² + (E‖g‖² − ‖E g‖²)/n."""
    W, eta, terms, exact = counted
    bias, moment = of_cap(counted, cap)
    mean = eta @ (W.clamp(max=cap)[:, None] * terms)
    return bias + (moment - mean.square().sum().item()) / n


def grid(counted) -> list[float]:
    return torch.linspace(0.02, counted[0].max().item(), 1500).tolist()


@pytest.mark.parametrize("cap", [0.5, 1.5, 4.0, 1e9])
def test_bias_and_second_moment(answer, counted, cap):
    got, expected = answer.bias_and_moment(cap, *counted), of_cap(counted, cap)
    assert len(got) == 2, f"expected (bias², second moment), got {got}"
    for name, one, other in zip(("bias²", "second moment"), got, expected, strict=True):
        assert float(one) == pytest.approx(other, rel=1e-6, abs=1e-9), (
            f"C = {cap:g}: expected {name} {other:g}, got {one}"
        )


@pytest.mark.parametrize("n", [1, *SIZES])
def test_mean_squared_error_of_a_batch(answer, counted, n):
    for cap in (0.5, 2.0, 1e9):
        got, expected = float(answer.mean_squared_error(cap, n, *counted)), of_batch(counted, cap, n)
        assert got == pytest.approx(expected, rel=1e-6), f"C = {cap:g}, N = {n}: expected {expected:g}, got {got:g}"


def test_mean_squared_error_is_what_batches_show(answer, counted):
    """20,000 batches of 8, drawn from η."""
    W, eta, terms, exact = counted
    drawn = torch.multinomial(eta, 160_000, replacement=True, generator=torch.Generator().manual_seed(0)).view(-1, 8)
    counts = torch.zeros(len(drawn), len(W), dtype=W.dtype).scatter_add_(
        1, drawn, torch.ones(drawn.shape, dtype=W.dtype)
    )
    means = counts / 8 @ (W.clamp(max=2.0)[:, None] * terms)
    seen, got = (means - exact).square().sum(dim=1).mean().item(), float(answer.mean_squared_error(2.0, 8, *counted))
    assert got == pytest.approx(seen, rel=0.05), f"C = 2, N = 8: expected {seen:.3g} as in drawn batches, got {got:.3g}"


@pytest.mark.parametrize("n", SIZES)
def test_the_best_cap_has_the_least_error(answer, counted, n):
    cap = float(answer.best_cap(n, *counted))
    best = min(grid(counted), key=lambda each: of_batch(counted, each, n))
    least, got = of_batch(counted, best, n), of_batch(counted, cap, n)
    assert got <= least * 1.001, (
        f"N = {n}: expected the error {least:.4g} (C = {best:.2f}), got {got:.4g} (C = {cap:.2f})"
    )


def test_the_table_of_caps(answer, counted):
    """BEST is what you found: N to C, to a tenth of C."""
    assert isinstance(answer.BEST, dict) and set(answer.BEST) == set(SIZES), (
        f"expected a cap for each of {SIZES}, got {answer.BEST}"
    )
    for n, cap in answer.BEST.items():
        best = min(grid(counted), key=lambda each: of_batch(counted, each, n))
        assert cap == pytest.approx(best, rel=0.1), f"N = {n}: expected C near {best:.1f}, got {cap}"
