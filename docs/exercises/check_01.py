"""Exercise 1: the weights of the kind "is" (E6), from E1. The page is 01.md."""

import pytest
import torch

import losses


def compare(answer, target, behaviour, mask, cap):
    expected = losses.gradient_weights("is", losses.log_ratio(target, behaviour, mask), mask, cap)
    got = answer.weights(target.clone(), behaviour.clone(), mask.clone(), cap)
    assert isinstance(got, torch.Tensor) and got.shape == mask.shape, (
        f"expected a tensor {tuple(mask.shape)}, got {got}"
    )
    assert not got.requires_grad, "expected w to be held constant (E3), got a w that gradients flow through"
    for row, t in mask.nonzero().tolist():
        got_here, expected_here = got[row, t].item(), expected[row, t].item()
        assert got_here == pytest.approx(expected_here, rel=1e-4), (
            f"log π = {target[row, t].item():g}, log η = {behaviour[row, t].item():g}, C = {cap}: "
            f"expected w = {expected_here:g}, got {got_here:g}"
        )


def test_a_ratio_by_hand(answer):
    """π gives a token 0.6 where η gave it 0.3: it is sampled half as often as it should be, and counts twice."""
    log = torch.tensor([[0.6, 0.1, 0.5]]).log(), torch.tensor([[0.3, 0.4, 0.5]]).log()
    got = answer.weights(*log, torch.ones(1, 3, dtype=torch.bool), 5.0)
    assert got is not None and got.tolist()[0] == pytest.approx([2.0, 0.25, 1.0]), (
        f"π = 0.6, 0.1, 0.5 and η = 0.3, 0.4, 0.5: expected w = 2, 0.25, 1, got {got}"
    )


def test_the_answer_is_its_own(answer):
    assert "losses" not in answer.imports(), "expected weights of your own, got an import of losses.py"


@pytest.mark.parametrize("cap", [0.5, 1.0, 2.0, 10.0])
def test_it_is_gradient_weights_inside_the_mask(answer, cap):
    generator = torch.Generator().manual_seed(0)
    target, behaviour = (-3 * torch.rand(6, 9, generator=generator) for _ in range(2))
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 7, 2, 9])[:, None]
    compare(answer, target.requires_grad_(), behaviour, mask, cap)


def test_what_is_outside_the_mask_does_not_count(answer):
    """Padding may hold anything; here it holds NaN."""
    target, behaviour = torch.full((2, 3), -1.0), torch.full((2, 3), -1.5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    compare(answer, target.where(mask, torch.nan), behaviour.where(mask, torch.nan), mask, 2.0)


def test_rare_tokens_keep_their_ratio(answer):
    """Both probabilities are below the least number of float32; their ratio is an ordinary one, or the cap."""
    target, behaviour = torch.tensor([[-200.0, -120.0, -300.0, -1.0]]), torch.tensor([[-200.5, -119.0, -3.0, -300.0]])
    compare(answer, target, behaviour, torch.ones(1, 4, dtype=torch.bool), 2.0)


def test_a_long_completion_has_a_weight_for_each_token(answer):
    """By token: no product over the completion, however long it is."""
    target, behaviour = torch.full((1, 5000), -1.0), torch.full((1, 5000), -1.1)
    compare(answer, target, behaviour, torch.ones(1, 5000, dtype=torch.bool), 2.0)
