"""The equations E1-E11 and the diagnostics, against worked examples by hand and against literal recursions."""

import math

import pytest
import torch

from losses import (
    WEIGHTS,
    diagnostics,
    gradient_weights,
    group_advantages,
    log_ratio,
    normaliser,
    policy_loss,
    supervised_loss,
)

RHO = torch.tensor([[2.0, 0.5, 4.0]], dtype=torch.float64)
LOG_RHO, MASK = RHO.log(), torch.ones(1, 3, dtype=torch.bool)
IS = [kind for kind in WEIGHTS if kind.startswith("is")]
ALL_WEIGHTS = [{"kind": kind} for kind in WEIGHTS]
ALL_WEIGHTS += [{"kind": kind} | other for kind in IS for other in ({"cap": None}, {"bound": "mask"})]
BOUNDED = [kwargs for kwargs in ALL_WEIGHTS if kwargs.get("cap", 2.0) is not None]


def random_case(N=5, T=9, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (N, 1), generator=generator)
    mask = torch.arange(T) < lengths
    return torch.randn((N, T), generator=generator, dtype=torch.float64) * scale * mask, mask


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({"kind": "on-policy"}, [1, 1, 1]),
        ({"kind": "is"}, [2, 0.5, 2]),
        ({"kind": "is", "cap": 1.5}, [1.5, 0.5, 1.5]),
        ({"kind": "is", "cap": None}, [2, 0.5, 4]),
        ({"kind": "is-sequence"}, [2, 2, 2]),
        ({"kind": "is-sequence", "cap": 5.0}, [4, 4, 4]),
        ({"kind": "is-sequence", "cap": None}, [4, 4, 4]),
        ({"kind": "is-prefix", "cap": None}, [2, 1, 4]),
        ({"kind": "is-prefix"}, [2, 1, 2]),
        ({"kind": "is-geometric"}, [4 ** (1 / 3)] * 3),
        ({"kind": "is-geometric", "cap": 1.5}, [1.5] * 3),
        ({"kind": "is", "bound": "mask"}, [2, 0.5, 0]),
        ({"kind": "is", "bound": "mask", "cap": 1.9}, [0, 0, 0]),
        ({"kind": "is-prefix", "bound": "mask", "cap": 3.0}, [2, 1, 0]),
        ({"kind": "is-sequence", "bound": "mask", "cap": 3.0}, [0, 0, 0]),
        ({"kind": "is-geometric", "bound": "mask"}, [4 ** (1 / 3)] * 3),
        ({"kind": "retrace", "bound": "mask"}, [0.5, 0.5, 1]),
        ({"kind": "on-policy", "bound": "mask", "cap": 1.1}, [1, 1, 1]),
        ({"kind": "retrace"}, [0.5, 0.5, 1]),
        ({"kind": "retrace", "lam": 0.5}, [0.125, 0.25, 1]),
        ({"kind": "retrace", "lam": 0.0}, [0, 0, 1]),
        ({"kind": "retrace", "cap": 0.1}, [0.5, 0.5, 1]),
        ({"kind": "retrace-token"}, [1, 0.5, 1]),
        ({"kind": "retrace-token", "lam": 0.5}, [0.5, 0.25, 0.5]),
    ],
)
def test_weights_of_ratios_2_half_4_by_hand(kwargs, expected):
    """E4-E11 with ρ = (2, ½, 4): W = 4, prefixes have 2, 1, 4, the traces min(1, ρ) are (1, ½, 1), and c_t itself is
    not in the product. A cap and its bound are for importance weights alone; 2 and ½ themselves are within [½, 2]."""
    weights = gradient_weights(log_ratio=LOG_RHO, mask=MASK, **kwargs)
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float64))


def test_a_mean_over_a_completion_is_over_its_own_tokens():
    """E10 with ρ = 4 and one token of padding: the mean of one logarithm, whatever the width of the batch."""
    log_rho, mask = torch.tensor([[4.0, 1.0], [4.0, 1.0]]).log(), torch.tensor([[True, False], [True, True]])
    weights = gradient_weights("is-geometric", log_rho, mask, cap=None)
    torch.testing.assert_close(weights * mask, torch.tensor([[4.0, 0.0], [2.0, 2.0]]))


@pytest.mark.parametrize("kwargs", ALL_WEIGHTS)
def test_all_weights_are_1_where_nothing_is_skipped(kwargs):
    """With ρ = 1, λ = 1 and caps of 1 or more every gradient is the on-policy one (invariant 1)."""
    _, mask = random_case()
    weights = gradient_weights(log_ratio=torch.zeros(mask.shape), mask=mask, **kwargs)
    assert torch.equal(weights, mask.float())


@pytest.mark.parametrize("kwargs", ALL_WEIGHTS)
def test_what_stands_outside_the_mask_never_matters(kwargs):
    """Padding holds anything, NaN included; weights there are 0, and a 0/1 mask serves as a bool one does."""
    log_rho, mask = random_case()
    expected = gradient_weights(log_ratio=log_rho, mask=mask, **kwargs)
    for rubbish in (math.nan, math.inf, -50.0):
        spoilt = torch.where(mask, log_rho, rubbish)
        assert torch.equal(gradient_weights(log_ratio=spoilt, mask=mask.double(), **kwargs), expected)
    assert (expected[~mask] == 0).all()


@pytest.mark.parametrize("kwargs", [*BOUNDED, {"kind": "retrace", "lam": 0.0}, {"kind": "retrace", "lam": 0.99}])
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_bounded_weights_stay_finite_at_any_length(kwargs, sign):
    """4,096 tokens with |log ρ| up to 20: products are sums of logarithms, capped before the exponential."""
    log_rho, _ = random_case(N=4, T=4096)
    log_rho = 20 * (torch.tanh(log_rho) if sign == 0 else sign * torch.ones_like(log_rho)).float()
    weights = gradient_weights(log_ratio=log_rho, mask=torch.ones(log_rho.shape), **kwargs)
    assert weights.isfinite().all() and weights.min() >= 0 and weights.max() <= 2


def test_an_uncapped_weight_that_overflows_names_its_log():
    """Truncation is a choice of the estimator: infinity must not be cut quietly, nor become NaN in the loss."""
    log_rho = torch.tensor([[1.0, 1.0], [100.0, 100.0], [50.0, -100.0]])
    with pytest.raises(OverflowError, match=r"its logarithm is 200\.0"):
        gradient_weights("is-sequence", log_rho, torch.ones(3, 2), cap=None)


def test_an_uncapped_prefix_may_overflow_where_the_whole_product_does_not():
    """The largest prefix is named: log W is 10 here."""
    log_rho = torch.tensor([[60.0, 70.0, -120.0]])
    assert gradient_weights("is-sequence", log_rho, torch.ones(1, 3), cap=None).isfinite().all()
    with pytest.raises(OverflowError, match=r"its logarithm is 130\.0"):
        gradient_weights("is-prefix", log_rho, torch.ones(1, 3), cap=None)


def test_a_weight_of_ones_own_is_one_function(monkeypatch):
    """README's example, MinPRO's weight: ρ_t times the least ratio before t. Its name begins with is: it is capped."""

    def is_least(log_rho, mask, lam):
        least = log_rho.cummin(1).values
        return log_rho + torch.cat((torch.zeros_like(least[:, :1]), least[:, :-1]), dim=1)

    monkeypatch.setitem(WEIGHTS, "is-least", is_least)
    for cap, expected in ((None, [2, 1, 2]), (1.5, [1.5, 1, 1.5])):
        weights = gradient_weights("is-least", LOG_RHO, MASK, cap=cap)
        torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("kwargs", ALL_WEIGHTS)
def test_no_gradient_flows_through_the_weights(kwargs):
    """E3: w is detached; the score function alone is differentiated."""
    log_rho = LOG_RHO.clone().requires_grad_()
    assert not gradient_weights(log_ratio=log_rho, mask=MASK, **kwargs).requires_grad


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"kind": "ppo"}, "'ppo'"),
        ({"kind": "is", "cap": 0.0}, "cap is 0.0"),
        ({"kind": "is", "bound": "clip"}, "bound is 'clip'"),
        ({"kind": "is", "bound": "mask", "cap": 1.0}, "the cap 1.0; expected .* a cap above 1"),
        ({"kind": "is", "bound": "mask", "cap": None}, "the cap None"),
        ({"kind": "retrace", "lam": 1.5}, "λ is 1.5"),
    ],
)
def test_unknown_kinds_and_numbers_out_of_range_are_refused(arguments, said):
    """A typing error must not choose another estimator."""
    with pytest.raises(ValueError, match=said):
        gradient_weights(log_ratio=LOG_RHO, mask=MASK, **arguments)


def test_log_ratio_by_hand():
    """E1 is π over η, not the other way round, and 0 outside the mask."""
    target, behaviour = torch.tensor([[0.5, 0.1, math.nan]]).log(), torch.tensor([[0.25, 0.2, 0.0]]).log()
    ratio = log_ratio(target, behaviour, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(ratio, torch.tensor([[math.log(2), math.log(0.5), 0.0]]))


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("mean", [0.75, -0.25, -0.25, -0.25]),
        ("grpo", [0.75 / (0.1875**0.5 + 1e-6)] + [-0.25 / (0.1875**0.5 + 1e-6)] * 3),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_advantages_of_one_right_answer_in_four_by_hand(kind, expected):
    """E2: mean ¼ and population variance 3/16; leave-one-out means are 0 for the right one, ⅓ for the others."""
    advantages = group_advantages(torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]), kind)
    torch.testing.assert_close(advantages, torch.tensor([expected, [0.0] * 4, [0.0] * 4]))


@pytest.mark.parametrize("kind", ["grpo", "mean", "rloo"])
def test_a_group_of_equal_rewards_has_no_signal_at_all(kind):
    """Ten times 0.1 has a mean that is not 0.1 in floating point; divided by 1e-6 the rounding would be a gradient."""
    assert (group_advantages(torch.full((3, 10), 0.1), kind) == 0).all()


def test_a_group_of_one_and_an_unknown_advantage_are_refused():
    """One completion has no others to be better than."""
    with pytest.raises(ValueError, match="1 completion"):
        group_advantages(torch.ones(4, 1))
    with pytest.raises(ValueError, match="'ppo'"):
        group_advantages(torch.ones(4, 2), "ppo")


def test_loss_by_hand_and_its_gradient():
    """E3: −(1/Z) Σ w A log π, so that d loss / d log π = −w A / Z inside the mask and 0 outside, even of NaN; w is held
    constant. With w = A = 1 it is the supervised loss."""
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, math.nan]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.5], [2.0, 5.0]], requires_grad=True)
    mask, advantages = torch.tensor([[1, 1], [1, 0]]), torch.tensor([1.0, -1.0])
    loss = policy_loss(logprobs, weights, advantages, mask, normaliser(mask))
    assert loss.item() == pytest.approx(-(-1.0 - 1.0 + 6.0) / 3)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.0, -0.5], [2.0, 0.0]]) / 3)
    assert weights.grad is None and supervised_loss(logprobs, mask, normaliser(mask)).item() == 2.0


def test_losses_of_micro_batches_add_up():
    """Z is the whole batch's (invariant 5); a mean of the micro-batches' means would weigh short ones too much."""
    log_rho, mask = random_case()
    advantages, z = torch.arange(5.0) - 2, normaliser(mask)
    whole = policy_loss(log_rho, log_rho.exp(), advantages, mask, z)
    parts = [policy_loss(log_rho[r], log_rho[r].exp(), advantages[r], mask[r], z) for r in ([0, 3], [1], [2, 4])]
    torch.testing.assert_close(sum(parts), whole)


def test_normalisers():
    """Z counts tokens or completions of the mask it is given, silent ones too, or is the constant."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert [normaliser(mask, kind) for kind in ("tokens", "completions", "64", 64)] == [4.0, 2.0, 64.0, 64.0]
    for wrong in ("groups", "0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match=repr(wrong)):
            normaliser(mask, wrong)


def test_diagnostics_by_hand():
    """Means over tokens of min(1, ρ), −log ρ and ρ − 1 − log ρ; ESS over completions of W = 2 · ½ = 1 and W = 3. Of the
    three sorted min(1, ρ), in logarithms, a twentieth is at place 0.1: a tenth of the way from ½ to 1."""
    log_rho = torch.tensor([[2.0, 0.5], [3.0, 1.0]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    figures = diagnostics(log_rho, mask)
    assert figures["acceptance"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert figures["acceptance_p5"] == pytest.approx(0.5**0.9)
    assert figures["sequence_acceptance"] == pytest.approx((1 * 0.5 + 1) / 2)
    assert figures["k1"] == pytest.approx(-math.log(3) / 3)
    assert figures["k3"] == pytest.approx((1 - 0.5 + 2) / 3 - math.log(3) / 3)
    assert figures["ratio_min"] == pytest.approx(0.5) and figures["ratio_max"] == pytest.approx(3)
    assert figures["max_abs_log_ratio"] == pytest.approx(math.log(3))
    assert figures["ess"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))


def test_log_ratio_is_detached_and_exact():
    """What it feeds (weights, diagnostics) is data, and bfloat16's 8 bits would drown a ratio near 1."""
    target, behaviour = (torch.tensor([[value]], dtype=torch.bfloat16) for value in (-8.0, -0.01))
    ratio = log_ratio(target.requires_grad_(), behaviour, torch.ones(1, 1))
    assert not ratio.requires_grad
    assert ratio.dtype == torch.float32 and ratio.item() == -8.0 - behaviour.item()


def test_diagnostics_by_hand_of_a_collapse_among_large_weights_with_padding():
    """W = e^100 beats W = e^60, which clamping either would hide; the largest |log ρ| is a negative one; NaN is out."""
    log_rho = torch.tensor([[60.0, math.nan, math.nan], [210.0, 10.0, -120.0]])
    figures = diagnostics(log_rho, torch.tensor([[1, 0, 0], [1, 1, 1]]))
    assert figures["ess"] == pytest.approx(0.5)
    log_rho = torch.tensor([[1.0, math.nan], [-3.0, 1.0]])
    figures = diagnostics(log_rho, torch.tensor([[1, 0], [1, 1]]))
    assert figures["max_abs_log_ratio"] == 3
    assert figures["ess"] == pytest.approx((math.e + math.e**-2) ** 2 / (2 * (math.e**2 + math.e**-4)))
