"""Specification of D1-D3: which layers may be skipped, how a list of them is typed or measured, how a mask is drawn."""

import warnings
from collections import Counter
from itertools import combinations

import pytest
import torch

from skip import Measured, Watch, measure, parse_valid_layers, sample_mask, valid_layers


def draw(n_layers, ratio, valid, seed=0):
    return sample_mask(n_layers, ratio, valid, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("n_layers", "border", "layers"),
    [(4, 0, [0, 1, 2, 3]), (4, 1, [1, 2]), (5, 2, [2]), (4, 2, []), (4, 3, []), (1, 1, [])],
)
def test_border_leaves_out_as_many_layers_on_either_side(n_layers, border, layers):
    """D2: the outermost layers translate from and to tokens; a border that meets itself leaves nothing to skip."""
    assert valid_layers(n_layers, border) == layers


def test_a_negative_border_is_refused():
    """It would name layers that do not exist."""
    with pytest.raises(ValueError, match="-1"):
        valid_layers(4, -1)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("border:1", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("border:0", list(range(12))),
        ("border:6", []),
        ("5", [5]),
        ("0,11", [0, 11]),
        ("2,5,8-11", [2, 5, 8, 9, 10, 11]),
        ("8-8", [8]),
        ("5,2,2,1-3", [1, 2, 3, 5]),
        (" 2, 5 ", [2, 5]),
    ],
)
def test_valid_layers_as_typed(text, layers):
    """A list is a set: sorted, each layer once, both ends of a range included."""
    assert parse_valid_layers(text, n_layers=12) == layers


@pytest.mark.parametrize(
    "text",
    ["", ",", "a", "1,a", "1,,2", "1;2", "1.5", "3-1", "5,3-1", "2-", "-1", "-3-1", "1--2", "0-12", "12", "4,99"]
    + ["border", "border:", "border:x", "border:-1", "border:1.5"],
)
def test_what_names_no_layers_is_refused_and_quoted(text):
    """A typing error must not quietly turn into another set of layers, not even in one part of a longer list."""
    with pytest.raises(ValueError) as refusal:
        parse_valid_layers(text, n_layers=12)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize(
    ("n_layers", "ratio", "skipped"),
    [(30, 0.3, 9), (4, 0.5, 2), (4, 1, 4), (5, 0.5, 2), (7, 0.5, 4), (6, 0.25, 2), (10, 0.25, 2), (10, 0.26, 3)],
)
def test_number_skipped_is_the_ratio_of_all_layers_rounded_half_to_even(n_layers, ratio, skipped):
    """D3: the ratio is one of all L layers, not of the valid ones; 2.5 gives 2 and 3.5 gives 4, as Python's round."""
    mask = draw(n_layers, ratio, list(range(n_layers)))
    assert (len(mask), sum(mask)) == (n_layers, skipped)
    assert all(type(skip) is bool for skip in mask)


def test_only_valid_layers_are_skipped():
    """D2 is a promise about every draw; with as many valid layers as are asked for there is no choice left."""
    valid = [1, 2, 5, 7]
    for seed in range(50):
        assert {layer for layer, skip in enumerate(draw(8, 0.25, valid, seed)) if skip} < set(valid)
    assert draw(8, 0.5, valid) == (False, True, True, False, False, True, False, True)


def test_every_set_of_layers_is_equally_likely():
    """D3 draws uniformly: the mean behaviour policy of T2 averages over the masks with equal weights."""
    generator = torch.Generator().manual_seed(0)
    valid, draws = [1, 2, 3, 4, 6], 4000
    counts = Counter(sample_mask(8, 0.25, valid, generator) for _ in range(draws))
    masks = [tuple(layer in pair for layer in range(8)) for pair in combinations(valid, 2)]
    assert set(counts) == set(masks)
    chi_square = sum((counts[mask] - draws / 10) ** 2 / (draws / 10) for mask in masks)
    assert chi_square < 27.9, counts  # 9 degrees of freedom: exceeded once in 1000 seeds, and the seed is fixed


def test_masks_follow_from_the_generator_alone():
    """A run is reproducible and resumable from the generator's state, whatever else draws random numbers."""
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = [sample_mask(30, 0.3, valid_layers(30, 1), generator) for _ in range(5)]
    assert len(set(first)) > 1
    torch.manual_seed(99)
    generator.set_state(state)
    assert [sample_mask(30, 0.3, valid_layers(30, 1), generator) for _ in range(5)] == first


@pytest.mark.parametrize(("border", "valid"), [(1, 2), (2, 0)])
def test_more_layers_than_are_valid_is_an_error_that_names_both_numbers(border, valid):
    """Skipping fewer than was asked for would report a ratio that was never run."""
    with pytest.raises(ValueError, match=rf"asks for 3 of 4 layers.* {valid} may"):
        draw(4, 0.75, valid_layers(4, border))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 30, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    """30 is the likely slip, for 30%."""
    with pytest.raises(ValueError, match=str(ratio)):
        draw(4, ratio, [1, 2])


def test_a_positive_ratio_that_comes_to_no_layer_warns():
    """The run would be on-policy, under a name that says otherwise."""
    with pytest.warns(UserWarning, match="0.1 of 4 layers"):
        assert not any(draw(4, 0.1, [1, 2]))


@pytest.mark.parametrize("valid", [[1, 2], []])
def test_ratio_0_skips_nothing_without_a_warning(valid):
    """The vanilla trainer is the ratio 0 of this one, also where no layer is valid."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(4, 0, valid) == (False,) * 4


# ---- measured


def additive(losses):
    """An acceptance from which each skipped layer takes its loss."""
    return lambda mask: 1 - sum(loss for loss, skipped in zip(losses, mask, strict=True) if skipped)


def test_layers_are_ordered_by_what_skipping_them_costs():
    """Where losses add up, the greedy order is that of the losses themselves."""
    measured = measure(additive([0.6, 0.02, 0.3, 0.01, 0.03]), n_layers=5)
    assert measured.order == [3, 1, 4, 2, 0]
    assert measured.alone == pytest.approx([0.4, 0.98, 0.7, 0.99, 0.97])
    assert measured.together == pytest.approx([0.99, 0.97, 0.94, 0.64, 0.04])


def test_layers_that_are_harmless_alone_but_not_together_are_kept_apart():
    """1 and 2 do each other's work: alone each is the cheapest to skip, and both at once are ruin."""

    def acceptance(mask):
        return 1 - 0.01 * (mask[1] or mask[2]) - 0.8 * (mask[1] and mask[2]) - 0.05 * mask[0] - 0.06 * mask[3]

    measured = measure(acceptance, n_layers=4)
    assert measured.order in ([1, 0, 3, 2], [2, 0, 3, 1])
    assert measured.together == pytest.approx([0.99, 0.94, 0.88, 0.08])


def test_the_accelerated_greedy_order_is_the_plain_one_for_fewer_measurements():
    """Losses that grow as more is skipped: the order of L²/2 measurements comes from far fewer."""
    generator, masks = torch.Generator().manual_seed(0), []
    weight, pair = torch.rand(20, generator=generator), torch.rand(20, 20, generator=generator) / 20

    def acceptance(mask):
        masks.append(mask)
        skipped = torch.tensor(mask).double()
        return (1 - (weight @ skipped.float() + skipped.float() @ pair @ skipped.float()) / 40).item()

    measured, asked = measure(acceptance, n_layers=20), len(masks)
    order = []
    while len(order) < 20:
        rest = [layer for layer in range(20) if layer not in order]
        order.append(max(rest, key=lambda new: acceptance(tuple(i in [*order, new] for i in range(20)))))
    assert measured.order == order and asked < 20 * 21 / 4
    assert all(measured.alone[layer] == acceptance(tuple(i == layer for i in range(20))) for layer in range(20))


@pytest.mark.parametrize(("n_skipped", "n_valid"), [(9, 12), (6, 10), (3, 10), (1, 28), (2, 15), (28, 28), (29, 29)])
def test_as_few_layers_are_valid_as_allow_a_hundred_masks(n_skipped, n_valid):
    """More would be worse ones. Two of the thirty are ruinous alone: they are taken only if so many are asked for."""
    order = [layer for layer in range(30) if layer not in (3, 17)] + [3, 17]
    measured = Measured([0.4 if layer in (3, 17) else 0.9 for layer in range(30)], order, [0.5] * 30)
    assert measured.valid_layers(n_skipped) == sorted(order[:n_valid])


def simulated(watch, acceptance, batches, wanted=0.7, most=20, noise=0.03, seed=0):
    """The numbers of layers skipped, and the batches' acceptance, of a model whose acceptance is a function of
    the number and of time."""
    generator, skipped, accepted = torch.Generator().manual_seed(seed), [], []
    for batch in range(batches):
        skipped.append(watch.n_skipped)
        accepted.append(acceptance(watch.n_skipped, batch))
        watch.see(accepted[-1] + noise * torch.randn((), generator=generator).item())
        watch.adapt(wanted, most)
    return skipped, accepted


@pytest.mark.parametrize("start", [0, 1, 6, 15])
@pytest.mark.parametrize("seed", range(3))
def test_the_number_skipped_settles_at_the_largest_that_is_accepted(start, seed):
    """A curve that falls ever faster, as measured ones do: 0.7 is crossed between 8 and 9 layers."""
    skipped, accepted = simulated(Watch(start), lambda k, _: 1 - 0.02 * k - 0.002 * k**2, batches=150, seed=seed)
    assert all(abs(k - other) <= 1 for k, other in zip(skipped, skipped[1:], strict=False))
    settled = skipped[50:]
    assert set(settled) <= {7, 8, 9} and settled.count(8) + settled.count(7) > 0.8 * len(settled)
    assert min(accepted[50:]) > 0.65, "never more than one too many"


def test_the_number_skipped_follows_a_model_that_changes():
    """It falls when what is skipped is missed more, and comes back."""

    def acceptance(k, batch):
        return 1 - (0.03 if batch < 60 or batch >= 160 else 0.06) * k

    skipped, accepted = simulated(Watch(9), acceptance, batches=300)
    assert set(skipped[30:60]) <= {9, 10} and set(skipped[100:160]) <= {4, 5} and set(skipped[240:]) <= {9, 10}
    assert sum(a < 0.64 for a in accepted) < 25


def test_no_more_is_skipped_than_there_is_and_no_less_than_nothing():
    """The ends of the range hold, whatever is accepted."""
    assert simulated(Watch(3), lambda k, _: 1.0, batches=60, most=5, noise=0)[0][-1] == 5
    skipped, _ = simulated(Watch(3), lambda k, _: 1.0 if k == 0 else 0.1, batches=60, noise=0)
    assert min(skipped) == 0 and max(skipped[10:]) <= 1 and skipped[10:].count(1) < 15


def test_a_fall_of_the_acceptance_is_noticed_and_noise_is_not():
    """What was measured is then of another model, and is measured again."""
    watch = Watch(9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        watch.see(0.75 + 0.03 * torch.randn((), generator=generator).item())
        assert not watch.drifted()
    for _ in range(20):
        watch.see(0.65)
    assert watch.drifted()
