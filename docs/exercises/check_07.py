"""Exercise 7: what a skipped layer becomes. The page is 07.md."""

from itertools import islice

import pytest
import torch

import data
import nested
import skip
from data import arith
from rollout import completion_hidden, prefill
from support.batches import pad_right
from support.pretrained import load_model

FIT, PROBE = 72, 16  # problems to fit on, and others to measure on
MASKS = ((8, 9, 11), (1, 3, 4, 5, 6, 8))  # layers that are skipped


@pytest.fixture(scope="module")
def world():
    """The embedded model, and completions of its own."""
    model, tokenizer = load_model(data.EMBEDDED, "float32", "cpu")
    problems = islice(arith.stream("train"), FIT + PROBE)
    prompts = [tokenizer.encode_prompt(problem.question) for problem in problems]
    return model, prompts, nested.own_completions(model, prompts, 32, tokenizer.eos_ids, 1.0)


@pytest.fixture(scope="module")
def rows(world):
    """Prompts with their completions, as tokens, and the mask of the completions' positions, (B, T) each."""
    _, prompts, completions = world
    tokens, mask = pad_right([p + y for p, y in zip(prompts[:FIT], completions[:FIT], strict=True)], "cpu")
    lengths = torch.tensor([len(prompt) for prompt in prompts[:FIT]])
    return tokens, mask & (torch.arange(mask.shape[1]) >= lengths[:, None])


@pytest.fixture(scope="module")
def fitted(answer, world, rows):
    """For each layer (x, update, mean, matrix, bias), all but the first two by the student."""
    model, (tokens, mask) = world[0], rows
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for module, name in ((skip, "fit_bypass"), (nested, "fit_bypass"), (nested, "fit_on_completions")):
            patch.setattr(module, name, lambda *_, **__: pytest.fail("expected a fit of your own, not skip.py's"))
        states = answer.states(model, tokens.clone(), mask.clone())
        before = [len(block._forward_hooks) for block in model.model.layers]
        assert not any(before), "expected no hooks left on the blocks"
        return [(x, update, answer.fit_mean(x, update), *answer.fit_linear(x, update)) for x, update in states]


def test_the_states_are_what_the_blocks_read_and_add(world, fitted, rows):
    """x: the normalised input of a block; update: its output less its input; both at the mask's positions, in order."""
    model, (tokens, mask) = world[0], rows
    assert len(fitted) == model.config.num_hidden_layers, f"expected a pair for each of 12 layers, got {len(fitted)}"
    shape = (int(mask.sum()), model.config.hidden_size)
    seen, blocks = {}, model.model.layers
    hooks = [
        blocks[layer].register_forward_hook(lambda _, given, out, layer=layer: seen.update({layer: (given[0], out)}))
        for layer in (0, 5, 11)
    ]
    with torch.no_grad():
        model.hidden(tokens)
    for hook in hooks:
        hook.remove()
    for layer, both in seen.items():
        inside, out = (state[mask] for state in both)
        expected = blocks[layer].input_layernorm(inside).detach(), out - inside
        for name, got, want in zip(("x", "update"), fitted[layer][:2], expected, strict=True):
            assert got.shape == shape, f"layer {layer}: expected {name} of shape {shape}, got {tuple(got.shape)}"
            off = (got - want).norm() / want.norm()
            assert off < 1e-3, f"layer {layer}: {name} is off by {off:.1%} of its norm"


def test_the_fits_are_the_least_squares_ones(fitted):
    for layer, (x, update, mean, matrix, bias) in enumerate(fitted):
        C = x.shape[1]
        assert mean.shape == bias.shape == (C,) and matrix.shape == (C, C), (
            f"expected a mean ({C},), a matrix ({C}, {C}) and a bias ({C},), "
            f"got {[tuple(t.shape) for t in (mean, matrix, bias)]}"
        )
        ones = torch.cat((x, torch.ones(len(x), 1)), dim=1).double()
        best = ones @ torch.linalg.lstsq(ones, update.double()).solution
        limits = {"mean": (update - update.mean(0)).square().mean(), "linear": 1.05 * (update - best).square().mean()}
        errors = {"mean": (update - mean).square().mean(), "linear": (update - x @ matrix - bias).square().mean()}
        for name, error in errors.items():
            assert error <= 1.001 * limits[name] + 1e-9, (
                f"layer {layer}, {name}: expected a mean square error of {limits[name]:.4g} at most, got {error:.4g}"
            )


@pytest.fixture(scope="module")
def acceptance(world, fitted):
    """Maps skipped layers to the acceptance by what they become, on problems that nothing was fitted on: the mean of
    Σ min(π, η) over tokens, the prompt read by the full model."""
    model, prompts, completions = world
    L, C = model.config.num_hidden_layers, model.config.hidden_size
    (tokens, mask), prompts = pad_right(completions[FIT:], "cpu"), prompts[FIT:]

    def bypass(matrices, biases):
        down, up = torch.stack([matrix.T for matrix in matrices]), torch.eye(C).expand(L, C, C)
        return skip.Bypass(down.float(), up, torch.stack([torch.stack((b, b)) for b in biases]).float())

    _, _, means, matrices, biases = zip(*fitted, strict=True)
    kinds = {"nothing": None, "mean": bypass([torch.zeros(C, C)] * L, means), "linear": bypass(matrices, biases)}
    read = prefill(model, prompts)
    full = completion_hidden(model, read, tokens, mask)

    def of(layers) -> dict[str, float]:
        skipped, accepted = tuple(layer in layers for layer in range(L)), {}
        for name, bypass in kinds.items():
            states = completion_hidden(model, read, tokens, mask, skipped, bypass)
            accepted[name] = round(nested.overlap(full, states, model.lm_head.weight), 3)
        return accepted

    return torch.no_grad()(of)


@pytest.mark.parametrize("layers", MASKS)
def test_a_linear_map_is_accepted_more_than_a_mean_or_nothing(acceptance, layers):
    got = acceptance(layers)
    assert got["linear"] > max(got["nothing"], got["mean"]), (
        f"without layers {layers}: expected the most for linear, got {got}"
    )


def test_the_mean_helps_in_one_layer_and_hurts_in_another(answer, acceptance):
    helps, hurts = (acceptance((layer,)) for layer in (answer.MEAN_HELPS, answer.MEAN_HURTS))
    assert helps["nothing"] + 0.01 < helps["mean"] < helps["linear"], (
        f"without layer {answer.MEAN_HELPS}: expected nothing + 0.01 < mean < linear, got {helps}"
    )
    assert hurts["mean"] < hurts["nothing"] - 0.05, (
        f"without layer {answer.MEAN_HURTS}: expected the mean to be 0.05 or more below nothing, got {hurts}"
    )
