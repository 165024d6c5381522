"""Nested models: the bypass that is fitted, the layers that may go, and how many while a model changes."""

import pytest
import torch
from conftest import small_model

import nested
from model import positions_and_bias, rotary_tables
from nested import RIDGE, Measured, Watch, divergence, fit_bypass, order_layers

L = 4  # layers of small_model
EXACT = {"rtol": 0, "atol": 1e-12}  # float64 rounding of logits that are of the order of 1


@pytest.fixture(scope="module")
def model():
    return small_model()


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 3, 32])
def test_the_fitted_bypass_is_the_best_of_its_rank(model, rank):
    """Rows of different lengths, whose padding must not count. Rank 0 is the mean, full rank the ridge regression."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(29, (n,), generator=generator).tolist() for n in (60, 47, 80)]
    tokens, mask = torch.zeros(3, 80, dtype=torch.int64), torch.zeros(3, 80, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    bypass = fit_bypass(model, tokens, mask, rank)
    inputs, updates, firsts = ([[] for _ in range(L)] for _ in range(3))
    for row in rows:
        x, (positions, bias) = (
            model.model.embed_tokens(torch.tensor([row])),
            positions_and_bias(len(row), None, torch.empty(0)),
        )
        rotary = rotary_tables(model.config, positions, x.dtype)
        for layer, block in enumerate(model.model.layers):
            y = block(x, rotary, bias, None, layer)
            firsts[layer].append((y - x)[0, 0])
            inputs[layer].append(block.input_layernorm(x)[0, 1:])
            updates[layer].append((y - x)[0, 1:])
            x = y
    for layer in range(L):
        x, update = torch.cat(inputs[layer]), torch.cat(updates[layer])
        fitted = bypass(layer, x[None], torch.arange(1, 1 + len(x))[None])[0]
        torch.testing.assert_close(bypass.bias[layer, 0], torch.stack(firsts[layer]).mean(0), **EXACT)
        torch.testing.assert_close(fitted.mean(0), update.mean(0), **EXACT)
        x, update = x - x.mean(0), update - update.mean(0)
        ridge = RIDGE * (x**2).sum(0).mean()
        error = ((update - (fitted - fitted.mean(0))) ** 2).sum()
        error += ridge * ((bypass.up[layer] @ bypass.down[layer]) ** 2).sum()
        wider = torch.cat((x, ridge.sqrt() * torch.eye(32)))  # a ridge is 32 more rows
        regression = wider @ torch.linalg.lstsq(wider, torch.cat((update, torch.zeros(32, 32)))).solution
        least = ((torch.cat((update, torch.zeros(32, 32))) - regression) ** 2).sum()
        torch.testing.assert_close(error, least + (torch.linalg.svdvals(regression)[rank:] ** 2).sum())


def additive(losses):
    """An acceptance from which each skipped layer takes its loss."""
    return lambda mask: 1 - sum(loss for loss, skipped in zip(losses, mask, strict=True) if skipped)


def test_layers_are_ordered_by_what_skipping_them_costs():
    """Where losses add up, the greedy order is that of the losses themselves."""
    measured = order_layers(additive([0.6, 0.02, 0.3, 0.01, 0.03]), n_layers=5)
    assert measured.order == [3, 1, 4, 2, 0]
    assert measured.alone == pytest.approx([0.4, 0.98, 0.7, 0.99, 0.97])
    assert measured.together == pytest.approx([0.99, 0.97, 0.94, 0.64, 0.04])


def test_layers_that_are_harmless_alone_but_not_together_are_kept_apart():
    """1 and 2 do each other's work: alone each is the cheapest to skip, and both at once are ruin."""

    def acceptance(mask):
        return 1 - 0.01 * (mask[1] or mask[2]) - 0.8 * (mask[1] and mask[2]) - 0.05 * mask[0] - 0.06 * mask[3]

    measured = order_layers(acceptance, n_layers=4)
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

    measured, asked = order_layers(acceptance, n_layers=20), len(masks)
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


def test_divergence_and_its_gradient_are_those_of_the_whole_softmax(monkeypatch):
    """KL(p‖q) and Σ min(p, q), in chunks; the gradient is q's alone: the full model must not learn from the nested."""
    monkeypatch.setattr(nested, "LOGITS", 50)
    x, y, weight = (torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for n in (7, 7, 17))
    kl, overlap = divergence(x, y, weight, temperature=0.7)
    *given, to_x = torch.autograd.grad(kl, (y, weight, x), allow_unused=True)
    log_p, log_q = ((z @ w.T / 0.7).log_softmax(-1) for z, w in ((x.detach(), weight.detach()), (y, weight)))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(given, list(torch.autograd.grad(expected, (y, weight))))
    assert to_x is None or not to_x.any()
    torch.testing.assert_close(overlap, torch.minimum(log_p.exp(), log_q.exp()).sum(-1).mean())
    assert not overlap.requires_grad
    kl, overlap = divergence(x, x, weight)
    torch.testing.assert_close(torch.stack((kl, overlap)), torch.tensor([0.0, 1.0], dtype=torch.float64))
