"""Exercise 3: a group baseline that is exact. The page is 03.md."""

import pytest
import test_theory as theory
import torch

import losses


def test_by_hand(answer):
    """Each reward less the mean of the others."""
    got = answer.leave_one_out(torch.tensor([[1.0, 0.0, 0.0], [2.0, 5.0, 5.0]]))
    expected = [[1.0, -0.5, -0.5], [-3.0, 1.5, 1.5]]
    assert isinstance(got, torch.Tensor) and got.shape == (2, 3), f"expected a tensor (2, 3), got {got}"
    assert got.tolist() == [pytest.approx(row) for row in expected], (
        f"expected {expected}, got {[[round(each, 3) for each in row] for row in got.tolist()]}"
    )


@pytest.mark.parametrize("P, G", [(1, 2), (3, 5), (4, 16)])
def test_it_is_the_advantage_rloo(answer, P, G):
    rewards = torch.rand(P, G, generator=torch.Generator().manual_seed(G))
    torch.testing.assert_close(
        answer.leave_one_out(rewards.clone()), losses.group_advantages(rewards, "rloo"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("G", [2, 3])
def test_by_enumeration_its_gradient_is_the_exact_one(answer, world, monkeypatch, G):
    """T5, over all groups of G completions, weighted as exact sequence weights want."""
    monkeypatch.setattr(losses, "group_advantages", lambda rewards, kind: answer.leave_one_out(rewards))
    exact = theory.exact_gradient(world)
    for m in (1, 3):
        advantages = theory.advantages_in_groups(world, world.probability[m], "rloo", G)
        got = theory.update(world, theory.weights_of(world, m, **theory.SEQUENCE), advantages)
        error = theory.relative(got - exact, exact)
        assert error < theory.EXACT, (
            f"G = {G}, mask {m}: expected the exact gradient, got one that is off by {error:.1%}"
        )


@pytest.mark.parametrize("G", [2, 3])
def test_by_enumeration_the_factor_mends_the_mean_with_oneself(answer, world, G):
    exact = theory.exact_gradient(world)
    for m in (1, 3):
        advantages = theory.advantages_in_groups(world, world.probability[m], "mean", G)
        got = theory.update(world, theory.weights_of(world, m, **theory.SEQUENCE), advantages * answer.factor(G))
        ratio = (got @ exact / (exact @ exact)).item()
        assert theory.relative(got - exact, exact) < theory.EXACT, (
            f"G = {G}, mask {m}: expected the exact gradient, got {ratio:.3f} of it with the factor {answer.factor(G)}"
        )
