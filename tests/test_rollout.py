"""The sampler: the fast one is the naive one, and its recorded log-probabilities are those of the nested model."""

import math
from itertools import pairwise, product

import pytest
import torch
from conftest import small_model

import rollout as rollout_module
from model import Decoder, positions_and_bias, rotary_tables
from rollout import (
    completion_logprobs,
    completion_logprobs_naive,
    generate,
    generate_naive,
    logits_naive,
    sample,
    survivors,
    uniform_streams,
)
from skip import Bypass
from support import fast
from support.fast import TokenLogprobs, packed

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [3, 3]]
EOS = [0, 12, 20]
MASKS = [None, (False, True, False, True), (True, False, False, False), (True, True, True, True)]


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def bypass():
    """Something in place of skipped blocks."""
    shapes, generator = ((4, 3, 32), (4, 32, 3), (4, 2, 32)), torch.Generator().manual_seed(0)
    return Bypass(*(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes))


def same(a, b) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask) and torch.equal(a.ended, b.ended)


@pytest.mark.parametrize("skip", MASKS)
@pytest.mark.parametrize("temperature, full_prefill", [(1.0, False), (0.7, False), (0.0, False), (0.7, True)])
def test_the_fast_sampler_is_the_naive_one_token_for_token(model, skip, temperature, full_prefill):
    """Batching, padding, the cache and leaving rows are means of speed only: same streams, same completions."""
    arguments = {"temperature": temperature, "skip": skip, "seed": 5, "full_prefill": full_prefill}
    fast = generate(model, PROMPTS, 4, 24, EOS, **arguments)
    naive = generate_naive(model, PROMPTS, 4, 24, EOS, **arguments)
    assert same(fast, naive)
    torch.testing.assert_close(fast.logprobs, naive.logprobs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("skip", MASKS)
def test_rows_that_stay_for_a_while_after_their_end_change_nothing(model, skip, monkeypatch):
    """An accelerator is asked only every few tokens which rows have ended."""
    at_once = generate(model, PROMPTS, 4, 24, EOS, skip=skip, seed=5)
    monkeypatch.setitem(rollout_module.CHECK_EVERY, "cpu", 8)
    patient = generate(model, PROMPTS, 4, 24, EOS, skip=skip, seed=5)
    assert same(at_once, patient) and (patient.tokens[~patient.mask] == 0).all()
    torch.testing.assert_close(at_once.logprobs, patient.logprobs, atol=1e-11, rtol=0)
    assert len(set(at_once.mask.sum(dim=1).tolist())) > 3, "rows should leave at different times"


class Replayed:
    """What `CapturedStep` does, without a GPU: one call, then the same again on the same memory. made: rows of each."""

    made: list[int] = []

    def __init__(self, model, cache, skip, bypass, n):
        cache.hold()
        self.call, self.column = lambda token: model(token, cache, skip, bypass)[:, 0], cache.next_column
        self.call(torch.zeros((n, 1), dtype=torch.int64))
        self.made.append(n)

    def __call__(self, token):
        logits = self.call(token[:, None])
        self.column += 1
        return logits


@pytest.mark.parametrize("eos", [EOS, []], ids=["rows end", "rows are cut off"])
@pytest.mark.parametrize(
    "skip, full_prefill", [(MASKS[0], False), (MASKS[1], False), (MASKS[1], True), (MASKS[3], True)]
)
def test_a_captured_step_changes_nothing_and_is_captured_again_when_half_of_the_rows_have_ended(
    model, bypass, skip, full_prefill, eos, monkeypatch
):
    arguments = {"temperature": 0.7, "skip": skip, "seed": 5, "bypass": bypass, "full_prefill": full_prefill}
    plain = generate(model, PROMPTS, 8, 90, eos, **arguments)
    monkeypatch.setattr(rollout_module, "CUDA_GRAPHS", {"cpu"})
    monkeypatch.setattr(rollout_module, "CapturedStep", Replayed)
    monkeypatch.setattr(Replayed, "made", [])
    captured = generate(model, PROMPTS, 8, 90, eos, **arguments)
    assert same(plain, captured)
    torch.testing.assert_close(captured.logprobs, plain.logprobs, atol=1e-11, rtol=0)
    assert Replayed.made[0] == 32 and (len(Replayed.made) > 2) == bool(eos)
    assert all(2 * after < before for before, after in pairwise(Replayed.made))


@pytest.mark.parametrize("full_prefill", [False, True])
@pytest.mark.parametrize("skip", list(product([False, True], repeat=4)))
def test_recorded_logprobs_are_those_of_a_teacher_forced_pass_with_the_same_mask(model, skip, full_prefill):
    """Invariant 2, for every mask, through prompts of four lengths, the cache and rows that leave: else ρ is wrong."""
    how = {"skip": skip, "full_prefill": full_prefill}
    rollout = generate(model, PROMPTS, 4, 24, EOS, seed=1, **how)
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 3, "rows should leave at different times"
    logprobs, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask, **how)
    torch.testing.assert_close(rollout.logprobs, logprobs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("full_prefill", [False, True])
@pytest.mark.parametrize("skip", MASKS)
def test_with_a_bypass_too_all_ways_to_compute_a_completion_agree(model, bypass, skip, full_prefill):
    """Prefill with padding, decoding, a shared prompt, and each row alone: the first position is a row's own first."""
    how = {"skip": skip, "bypass": bypass, "full_prefill": full_prefill}
    rollout, naive = (sampler(model, PROMPTS, 4, 24, EOS, **how) for sampler in (generate, generate_naive))
    assert same(rollout, naive)
    assert same(rollout, generate(model, PROMPTS, 4, 24, EOS, **how | {"bypass": None})) == (not any(skip or ()))
    for logprobs_of in (completion_logprobs, completion_logprobs_naive):
        logprobs, _ = logprobs_of(model, rollout.prompts, rollout.tokens, rollout.mask, **how)
        torch.testing.assert_close(rollout.logprobs, logprobs, atol=1e-11, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("skip", MASKS[1:])
def test_where_the_full_model_reads_the_prompt_the_nested_one_attends_to_its_keys_and_values(model, bypass, skip):
    """By hand, block by block: the prompt's states go through all of them, the completion's past the skipped ones, and
    what stays attends to both. The first token is the full model's."""
    prompt, completion, P = PROMPTS[2], [3, 14, 15, 9, 2], len(PROMPTS[2])
    x = model.model.embed_tokens(torch.tensor([prompt + completion]))
    at, bias = positions_and_bias(P + len(completion), None, torch.empty(0))
    rotary, without = rotary_tables(model.config, at, x.dtype), (False,) * 4
    for layer, block in enumerate(model.model.layers):
        whole = block(x, rotary, bias, None, layer)  # causal: the prompt's states do not depend on what follows
        update = bypass(layer, block.input_layernorm(x), at) if skip[layer] else whole - x
        x = torch.cat((whole[:, :P], (x + update)[:, P:]), dim=1)
    expected = model.lm_head(model.model.norm(x))[0, P - 1 :]
    torch.testing.assert_close(logits_naive(model, prompt, torch.tensor(completion), skip, bypass, True), expected)
    full = model(torch.tensor([prompt]), skip=without)[0, -1]
    torch.testing.assert_close(expected[0], full)
    nested = model(torch.tensor([prompt + completion]), skip=skip, bypass=bypass)[0, P:]
    assert ((expected[1:] - nested).abs().max() > 0.1) == (not all(skip)), "where no block is left nothing attends"


def test_recorded_logprobs_are_of_the_distribution_at_its_temperature(model):
    """π and η are the softmax of logits/τ: scored at another τ, or without one, they would differ."""
    rollout = generate(model, PROMPTS, 2, 12, EOS, temperature=0.5, seed=2)
    at_half, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask, temperature=0.5)
    at_one, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask)
    torch.testing.assert_close(rollout.logprobs, at_half, atol=1e-11, rtol=0)
    assert (at_one - rollout.logprobs).abs().max() > 0.1


@pytest.mark.parametrize("how", [{}, {"skip": MASKS[1], "full_prefill": True}])
def test_a_completion_depends_on_its_prompt_and_stream_alone(model, how):
    """Invariant 4: not on the other prompts, their order, the size of the group or when finished rows leave."""
    seeds = [11, 12, 13, 14]
    together = generate(model, PROMPTS, 3, 24, EOS, seed=seeds, **how)
    for order in ([2, 0], [3, 2, 1, 0], [1]):
        apart = generate(model, [PROMPTS[p] for p in order], 2, 24, EOS, seed=[seeds[p] for p in order], **how)
        for i, p in enumerate(order):
            for g in range(2):
                assert apart.completion(i * 2 + g) == together.completion(p * 3 + g)


def test_a_longer_budget_continues_the_same_completion(model):
    """The stream's first numbers do not depend on how many are asked for."""
    short, long = (generate(model, PROMPTS, 2, n, EOS, seed=3) for n in (6, 24))
    for row in range(8):
        assert long.tokens[row, : short.mask[row].sum()].tolist() == short.tokens[row, short.mask[row]].tolist()


def test_an_int_seed_stands_for_consecutive_ones(model):
    """Seed s is s, s+1, … for the prompts, so batches that follow each other share no stream."""
    assert same(generate(model, PROMPTS, 2, 9, EOS, seed=7), generate(model, PROMPTS, 2, 9, EOS, seed=[7, 8, 9, 10]))
    assert not same(generate(model, PROMPTS, 2, 9, EOS, seed=7), generate(model, PROMPTS, 2, 9, EOS, seed=8))


def test_the_end_token_is_an_action(model):
    """It stands in tokens, mask and logprobs (a policy has to learn when to stop); nothing stands behind it."""
    rollout = generate(model, PROMPTS, 8, 24, EOS, seed=4)
    assert 0 < rollout.ended.sum() < 32
    for row in range(32):
        tokens = rollout.tokens[row, rollout.mask[row]].tolist()
        assert (tokens[-1] in EOS) == rollout.ended[row].item()
        assert not set(tokens[:-1]) & set(EOS)
        assert rollout.completion(row) == (tokens[:-1] if rollout.ended[row] else tokens)
        assert (rollout.logprobs[row, rollout.mask[row]] < 0).all()
    assert (rollout.logprobs[~rollout.mask] == 0).all()
    assert rollout.mask.any(dim=0).all(), "no column without a token"


def test_a_prompt_is_prefilled_once_and_finished_rows_leave(model, monkeypatch):
    """What the sampler costs: P rows at first, then as many as are still unfinished."""
    rows, hidden = [], Decoder.hidden
    monkeypatch.setattr(Decoder, "hidden", lambda self, x, *a, **k: rows.append(len(x)) or hidden(self, x, *a, **k))
    rollout = generate(model, PROMPTS, 8, 24, EOS, seed=4)
    assert rows == [4] + rollout.mask.sum(dim=0).tolist()[1:]


def test_greedy_is_the_argmax_with_certainty(model):
    """Temperature 0 is a point mass: its log-probability is 0, and all samples of a prompt are the same."""
    rollout = generate(model, PROMPTS, 2, 10, EOS, temperature=0.0)
    assert torch.equal(rollout.tokens[0::2], rollout.tokens[1::2])
    assert (rollout.logprobs == 0).all()
    first = model(torch.tensor(PROMPTS[:1]))[0, -1].argmax()
    assert rollout.tokens[0, 0] == first


def test_survivors_move_only_rows_from_the_end():
    """Rows stay where they are or come from beyond the kept ones: copying in place overwrites nothing needed."""
    for pattern in product([False, True], repeat=6):
        done = torch.tensor(pattern)
        rows = survivors(done)
        assert sorted(rows.tolist()) == (~done).nonzero()[:, 0].tolist()
        assert all(row in (i, *range(len(rows), 6)) for i, row in enumerate(rows.tolist()))


def test_sampling_inverts_the_distribution_function():
    """Probabilities (0.1, 0.2, 0, 0.7): u falls into [0, 0.1), [0.1, 0.3) and [0.3, 1), and never on the 0."""
    probabilities = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64)
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 1 - 2**-53], dtype=torch.float64)
    token, logprob = sample(probabilities.log().expand(6, 4), u, temperature=1.0)
    assert token.tolist() == [0, 0, 1, 1, 3, 3]
    torch.testing.assert_close(logprob, probabilities[token].log())


def test_every_token_of_a_large_vocabulary_can_be_drawn():
    """In float32 a running sum near 1 moves in steps of 6e-8: of 50,000 tokens of 1e-9 hardly any could be reached."""
    V = 50_000
    probabilities = torch.full((V,), 1e-9, dtype=torch.float64)
    probabilities[0] = 1 - 1e-9 * (V - 1)
    wanted = torch.tensor([1, 777, 49_998, 49_999])
    u = probabilities.cumsum(0)[wanted] - 0.5e-9
    token, _ = sample(probabilities.log().float().expand(4, V), u, temperature=1.0)
    assert (token - wanted).abs().max() <= 60, "within float32's rounding of the first probability"
    assert len(set(token.tolist())) == 4


def test_frequencies_are_the_probabilities(model):
    """2,000 first tokens of one prompt against the model's own distribution, within 5 standard errors each."""
    rollout = generate(model, PROMPTS[:1], 2000, 1, EOS, seed=6)
    p = model(torch.tensor(PROMPTS[:1]))[0, -1].softmax(-1)
    frequency = torch.bincount(rollout.tokens[:, 0], minlength=29) / 2000
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / 2000).sqrt() + 1e-3).all()


@pytest.mark.parametrize("prompts", [[0, 0, 0, 1, 1, 2], [2, 0, 1, 0, 2, 1], [1, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("skip, full_prefill", [(None, False), (MASKS[1], False), (MASKS[1], True)])
def test_completion_logprobs_and_their_gradients_are_the_naive_ones(model, monkeypatch, prompts, skip, full_prefill):
    """Prompts shared by their groups, left padding, chunks of the head computed twice: the same numbers, and the same
    gradient through the shared keys and values."""
    monkeypatch.setattr(fast, "LOGITS", 7 * 29)
    prompts = [PROMPTS[i] for i in prompts]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 29, (6, 11), generator=generator)
    mask = torch.arange(11) < torch.tensor([11, 4, 1, 7, 2, 9])[:, None]
    upstream = torch.randn(6, 11, generator=generator, dtype=torch.float64)
    results = []
    for function in (completion_logprobs, completion_logprobs_naive):
        model.zero_grad()
        logprobs, entropy = function(model, prompts, tokens, mask, 0.7, skip, full_prefill=full_prefill)
        (logprobs * upstream).sum().backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        results.append((logprobs.detach(), entropy, torch.cat([part.flatten() for part in parts])))
        assert not entropy.requires_grad
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-11)


def test_rows_of_a_prompt_share_its_pass(model, monkeypatch):
    """What scoring costs: each different prompt once, then the completions but for their last column."""
    shapes, hidden = [], Decoder.hidden
    monkeypatch.setattr(
        Decoder, "hidden", lambda self, x, *a, **k: shapes.append(tuple(x.shape)) or hidden(self, x, *a, **k)
    )
    mask = torch.arange(9) < torch.tensor([5, 2, 6, 1])[:, None]
    completion_logprobs(model, [[1, 2, 3], [4], [1, 2, 3], [4]], mask.long(), mask)
    assert shapes == [(2, 3), (4, 5)]


def test_completion_logprobs_and_entropy_by_hand(model):
    """Against the plainest reading: one row, one log-softmax a token."""
    rollout = generate(model, PROMPTS, 2, 10, EOS, seed=8)
    logprobs, entropy = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask)
    for row in (0, 3, 5):
        prompt, completion = rollout.prompts[row], rollout.tokens[row, rollout.mask[row]].tolist()
        table = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        n = len(completion)
        torch.testing.assert_close(logprobs[row, :n], table[range(n), completion])
        torch.testing.assert_close(entropy[row, :n], -(table.exp() * table).sum(-1))
    assert (logprobs[~rollout.mask] == 0).all() and not entropy.requires_grad


@pytest.mark.parametrize(
    "arguments, said",
    [
        (([[1], []], 2, 5, EOS), "must not be empty"),
        (([[1] * 250], 2, 7, EOS), "room for 256"),
        (([], 2, 5, EOS), "0 prompts"),
        (([[1]], 0, 5, EOS), "0 samples"),
        (([[1]], 2, 0, EOS), "0 new tokens"),
        (([[1]], 2, 5, EOS, 1.0, None, [1, 2]), "2 seeds for 1 prompts"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model, arguments, said):
    """With what was given, not with an index error from inside."""
    with pytest.raises(ValueError, match=said):
        generate(model, *arguments)


def test_a_token_of_probability_0_is_never_drawn():
    """u = 0 exactly, or on a boundary: log 0 in the record would make an infinite ratio of it."""
    logits = torch.tensor([[-math.inf, 0.0, 0.0], [0.0, -math.inf, 0.0]], dtype=torch.float64)
    token, logprob = sample(logits, torch.tensor([0.0, 0.5], dtype=torch.float64), temperature=1.0)
    assert token.tolist() == [1, 2]
    assert logprob.exp().tolist() == pytest.approx([0.5, 0.5])


def test_the_temperature_divides_the_logits():
    """Odds of 1 to 2 are 1 to 4 at τ = ½. Sampling and scoring share one softmax: comparing them shows nothing."""
    logits = torch.tensor([[0.0, math.log(2)]] * 2)
    token, logprob = sample(logits, torch.tensor([0.19, 0.21], dtype=torch.float64), temperature=0.5)
    assert token.tolist() == [0, 1]
    torch.testing.assert_close(logprob.exp(), torch.tensor([0.2, 0.8]))


def test_log_probabilities_are_float32_where_the_model_is_bfloat16():
    """Rounded to 8 bits, log η or log π alone would make ratios of e^0.03 out of nothing."""
    model = small_model(torch.bfloat16)
    rollout = generate(model, PROMPTS, 2, 6, EOS, seed=1)
    scored, entropy = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask)
    for figures in (rollout.logprobs, scored, entropy):
        assert figures.dtype == torch.float32
        assert (figures != figures.bfloat16()).any(), "rounded on the way"


def test_a_rollout_has_no_gradient(model):
    """Sampling keeps no graph: it would hold every step's activations until the loss."""
    rollout = generate(model, PROMPTS, 2, 6, EOS, seed=1)
    assert not rollout.logprobs.requires_grad


def test_no_two_rows_share_a_stream(model):
    """Neither in a group nor between prompts with consecutive seeds: equal numbers make completions dependent."""
    uniforms = uniform_streams(model, [[1]] * 5, 4, 3, seed=7)
    assert len({tuple(row) for row in uniforms.tolist()}) == 20


def test_a_rollout_is_as_wide_as_its_longest_completion(model):
    """A budget that no completion uses costs the update nothing."""
    rollout = generate(model, PROMPTS, 2, 24, list(range(29)), seed=1)
    assert rollout.tokens.shape == rollout.mask.shape == rollout.logprobs.shape == (8, 1)


def test_a_prompt_and_its_completion_may_fill_the_context_exactly(model):
    """256 tokens in all; one more is refused (below)."""
    rollout = generate(model, [[1] * 250], 2, 6, [], seed=1)
    assert rollout.tokens.shape == (2, 6)


def test_logits_that_are_not_finite_still_give_a_token():
    """The index is clamped to the vocabulary: what is wrong is said by the check of the log-ratios, not by an index."""
    token, logprob = sample(torch.full((1, 3), math.nan), torch.tensor([0.5], dtype=torch.float64), temperature=1.0)
    assert 0 <= token.item() < 3 and logprob.isnan().all()


def test_no_two_runs_share_a_stream(model):
    """A run's seed stands above 2³² in the prompts' seeds: there, too, seed and sample must not be mistaken."""
    uniforms = uniform_streams(model, [[1]] * 3, 4, 3, seed=[7, 7 + 2**32, 7 + 2 * 2**32])
    assert len({tuple(row) for row in uniforms.tolist()}) == 12


def test_packed_matrices_are_the_same_numbers_and_the_model_keeps_its_own():
    """Sampling from a model that differs from the trained one by its arithmetic would be off-policy for nothing."""
    model, tokens = small_model(torch.bfloat16, attention_bias=True), torch.arange(24).view(8, 3)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) / 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = packed(model, rows=8)
    assert twin is not model and not any(isinstance(module, torch.nn.Linear) for module in twin.modules())
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens), model(tokens), atol=0.05, rtol=0.02)
    assert twin.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert packed(single := small_model(torch.float32), rows=8) is single


def test_logits_are_divided_by_the_temperature_in_float32():
    """In bfloat16 the quotient is rounded to 8 bits: sampling and scoring would round alike, and the ratio hide it."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 16, generator=generator).bfloat16() for n in (200, 50))
    logits = torch.nn.functional.linear(x, weight)
    expected = (logits.float() / 0.7).log_softmax(-1)
    token, logprob = sample(logits, torch.rand(200, dtype=torch.float64, generator=generator), temperature=0.7)
    torch.testing.assert_close(logprob, expected[range(200), token], atol=1e-5, rtol=1e-5)
    scored, _ = TokenLogprobs.apply(x, weight, token, 0.7)
    torch.testing.assert_close(scored, expected[range(200), token], atol=1e-5, rtol=1e-5)


def test_the_gradient_of_the_states_is_added_up_in_float32(monkeypatch):
    """Over blocks of the vocabulary: of 256 parts in bfloat16, those behind the largest would hardly count."""
    monkeypatch.setattr(fast, "LOGITS", 8)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 16, generator=generator).bfloat16() for n in (8, 256))
    errors = []
    for dtype in (torch.bfloat16, torch.float32):
        states = x.to(dtype, copy=True).requires_grad_()
        TokenLogprobs.apply(states, weight.to(dtype), torch.arange(8), 1.0)[0].sum().backward()
        errors.append(states.grad.float())
    assert (errors[0] - errors[1]).norm() < 0.0075 * errors[1].norm(), "0.0051 as it is, 0.0100 added up in bfloat16"
