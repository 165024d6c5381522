"""Nested models: the bypass that is fitted, the layers that may go, and what is kept of both."""

import shutil

import pytest
import torch
from conftest import small_model

import nested
from data import Problem
from model import positions_and_bias, rotary_tables
from nested import LayerOrder, Measurement, fingerprint, order_layers, overlap, read, save
from skip import RIDGE, Bypass, fit_bypass
from support.pretrained import load_model
from support.settings import Settings

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_all_positions_are_one_token_the_bypass_is_its_update(dtype):
    """A model that ends at once: there is no slope to fit, and rounding must not be taken for one."""
    model = small_model(dtype)
    bypass = fit_bypass(model, torch.tensor([[3, 5]] * 7), torch.tensor([[True, True]] * 7), rank=3)
    assert all(tensor.isfinite().all() for tensor in vars(bypass).values())
    assert (bypass.up[0] @ bypass.down[0]).abs().max() < 1e-3
    x = model.model.embed_tokens(torch.tensor([[3, 5]]))
    positions, bias = positions_and_bias(2, None, torch.empty(0, dtype=dtype))
    update = model.model.layers[0](x, rotary_tables(model.config, positions, dtype), bias, None, 0) - x
    torch.testing.assert_close(bypass(0, x, torch.arange(2)[None]), update, rtol=0.02, atol=0.02)


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


def test_the_table_of_layers_fits_a_narrow_window_and_says_how_to_read_it():
    """Of a model of 30 layers: 80 characters a line, every layer that may go once with its two shares."""
    order = [*range(10, 30), *range(10)]
    measured = LayerOrder([layer / 100 + 0.6 for layer in range(30)], order, [1 - i / 100 for i in range(30)])
    text = measured.table(9)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    valid = order[: len(measured.valid_layers(9))]
    layers, alone, together = ([x for r in rows if r[: len(n)] == n for x in r[len(n) :]] for n in
                               (["layer"], ["accepted", "without", "it"], ["and", "all", "before"]))  # fmt: skip
    assert layers == [str(layer) for layer in valid] and len(alone) == len(together) == len(valid)
    assert alone[0] == "0.70" and together[:2] == ["1.00", "0.99"]
    assert f"Each batch skips 9 of these {len(valid)} layers" in text and f"The other {30 - len(valid)} stay" in text


@pytest.mark.parametrize(("n_skipped", "n_valid"), [(9, 10), (6, 8), (3, 5), (1, 10), (2, 5), (28, 28), (29, 29)])
def test_as_few_layers_are_valid_as_allow_ten_masks(n_skipped, n_valid):
    """More would be worse ones. Two of the thirty are ruinous alone: they are taken only if so many are asked for."""
    order = [layer for layer in range(30) if layer not in (3, 17)] + [3, 17]
    measured = LayerOrder([0.4 if layer in (3, 17) else 0.9 for layer in range(30)], order, [0.5] * 30)
    assert measured.valid_layers(n_skipped) == sorted(order[:n_valid])


def test_the_stamp_knows_every_weight_its_dtype_and_what_else_counts(model):
    """A measurement of other weights would be taken for one of these: the last row of a matrix counts as the first."""
    stamps = [fingerprint(model, [[1, 2]], 0.7), fingerprint(model, [[1, 2]], 1.0), fingerprint(model, [[1, 3]], 0.7)]
    zeros = small_model()
    for parameter in zeros.parameters():
        parameter.data.zero_()  # the same bytes in two dtypes
    stamps += [fingerprint(zeros.to(dtype), [[1, 2]], 0.7) for dtype in (torch.bfloat16, torch.float16)]
    for parameter in model.parameters():
        for index in {0, parameter.numel() - 1}:
            moved = small_model()
            moved.load_state_dict(model.state_dict())
            dict(zip(model.parameters(), moved.parameters(), strict=True))[parameter].data.view(-1)[index] += 1e-9
            stamps.append(fingerprint(moved, [[1, 2]], 0.7))
    assert len(set(stamps)) == len(stamps)
    assert fingerprint(small_model(), [[1, 2]], 0.7) == stamps[0]


@pytest.mark.parametrize(
    "flag, value",
    [("prefill", "nested"), ("bypass", "mean"), ("temperature", 0.9), ("max_new_tokens", 3), ("skip_ratio", 0.25)]
    + [("valid_layers", "1-3")],
)
def test_a_kept_measurement_is_of_the_settings_that_it_was_made_with(checkpoint, tmp_path, monkeypatch, flag, value):
    """Kept under one value and asked for under another, it is made again; under another seed it is not."""
    monkeypatch.setattr(
        nested.NestedModels, "fit_and_order", lambda self, prompts: (made.append(prompts), (None, None))[1]
    )
    folder, made = shutil.copytree(checkpoint, tmp_path / "model"), []
    shutil.rmtree(folder / "nested", ignore_errors=True)
    model, tokenizer = load_model(folder, "float32", "cpu")
    problems = [Problem(f"What is {i}?", "7", "") for i in range(9)]
    first = {"model": str(folder), "skip_ratio": 0.5, "max_new_tokens": 6}
    for more, times in (({}, 1), ({"seed": 1}, 1), ({flag: value}, 2), ({flag: value}, 2), ({}, 3)):
        nested.NestedModels(model, tokenizer, problems, Settings(**first | more)).measure(1)
        assert len(made) == times, more
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("more", [{"adapter": "mine"}, {"warmup_epochs": 1}])
def test_nothing_is_kept_beside_a_model_that_has_learned_since(checkpoint, tmp_path, monkeypatch, more):
    """The next run of the model itself would have to measure again."""
    monkeypatch.setattr(nested.NestedModels, "fit_and_order", lambda self, prompts: (None, None))
    folder = shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("nested"))
    model, tokenizer = load_model(folder, "float32", "cpu")
    s = Settings(model=str(folder), skip_ratio=0.5, max_new_tokens=6, **more)
    nested.NestedModels(model, tokenizer, [Problem("What is 1?", "7", "")], s).measure(1)
    assert not (folder / "nested").exists()


@pytest.mark.parametrize("layers", [None, LayerOrder([0.5, 0.25], [1, 0], [0.75, 0.125])])
@pytest.mark.parametrize("bypass", [None, Bypass(torch.ones(4, 3, 8), torch.zeros(4, 8, 3), torch.ones(4, 2, 8))])
def test_what_was_measured_is_read_as_it_was_written(tmp_path, model, layers, bypass):
    """All of it: a resume that forgot a part would sample from other nested models."""
    path = tmp_path / "nested" / "measured.safetensors"
    save(path, Measurement(step=51, bypass=bypass, order=layers, of="abc"))
    found = read(path, model)
    assert (found.step, found.order, found.of) == (51, layers, "abc") and (found.bypass is None) == (bypass is None)
    if bypass:
        assert all(torch.equal(vars(found.bypass)[name], part.double()) for name, part in vars(bypass).items())
    save(tmp_path / "nothing", None)
    assert read(tmp_path / "nothing", model) is None


def test_overlap_is_that_of_the_whole_softmax(monkeypatch):
    """Σ min(p, q), a mean over tokens, in chunks."""
    monkeypatch.setattr(nested, "LOGITS", 50)
    x, y, weight = (torch.randn(n, 8, dtype=torch.float64) for n in (7, 7, 17))
    p, q = ((z @ weight.T / 0.7).softmax(-1) for z in (x, y))
    assert overlap(x, y, weight, temperature=0.7) == pytest.approx(torch.minimum(p, q).sum(-1).mean().item())
    assert overlap(x, x, weight) == pytest.approx(1.0)
