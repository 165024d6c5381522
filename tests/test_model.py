"""Specification of the decoder: its arithmetic, skipping, the cache, and which checkpoints it loads or refuses."""

import copy
import json
import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_model
from safetensors.torch import load_file, save_file

import model as model_module
from cache import CompletionCache, KVCache, PromptCache
from model import Decoder, RMSNorm, attend, rotary_tables, rotate
from skip import Bypass
from support.pretrained import config_json, parse_config, read_file

L = 4  # layers of small_model
MASKS = list(product((False, True), repeat=L))
EXACT = {"rtol": 0, "atol": 1e-12}  # float64 rounding of logits that are of the order of 1


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def some_tokens(rows, length, seed=0):
    return torch.randint(29, (rows, length), generator=torch.Generator().manual_seed(seed))


def cached_logits(model, tokens, chunks, skip=None, padding=None):
    """The logits of `tokens`, computed chunk by chunk: a prompt, and what follows it."""
    prompt, *rest = tokens.split(chunks, dim=1)
    read = PromptCache(skip, padding)
    logits = [model(prompt, read, skip)]
    cache = KVCache(read, torch.arange(len(tokens)), tokens.shape[1], skip)
    return torch.cat(logits + [model(chunk, cache, skip) for chunk in rest], dim=1)


# Arithmetic


def test_rms_norm_by_hand():
    """Mean square of (1, 7) is 25; eps stands under the root; the weight comes last."""
    norm = RMSNorm(2, eps=0.0)
    norm.weight.copy_(torch.tensor([10.0, 5.0]))
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([2.0, 7.0]))
    norm.eps = 11.0
    torch.testing.assert_close(norm(torch.tensor([1.0, 7.0])), torch.tensor([10 / 6, 35 / 6]))


def test_rms_norm_squares_in_float32_at_least():
    """300² is more than float16 can hold."""
    norm = RMSNorm(2, eps=0.0).half()
    assert norm(torch.tensor([300.0, -300.0]).half()).tolist() == [1.0, -1.0]


def test_rms_norm_rounds_before_it_multiplies():
    """As transformers does: in bfloat16 the other order gives other numbers than checkpoints were trained with."""
    norm = RMSNorm(64, eps=0.0).bfloat16()
    norm.weight.copy_(torch.linspace(0.5, 2, 64))
    x = torch.linspace(-3, 3, 64).bfloat16()
    scaled = x.float() / x.float().pow(2).mean().sqrt()
    assert torch.equal(norm(x), norm.weight * scaled.bfloat16())
    assert not torch.equal(norm(x), (norm.weight * scaled).bfloat16())


def test_rotary_by_hand():
    """With D = 4 and base 10,000, pairs (0, 2) and (1, 3) turn by 1 and by 1/100 a position, anticlockwise."""
    config = small_model(head_dim=4).config
    cos, sin = rotary_tables(config, torch.tensor([[0, 1, 5]]), torch.float64)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).expand(1, 1, 3, 4)
    expected = [
        [math.cos(a) - 3 * math.sin(a), 2 * math.cos(b) - 4 * math.sin(b),
         3 * math.cos(a) + math.sin(a), 4 * math.cos(b) + 2 * math.sin(b)]
        for a, b in [(0, 0), (1, 0.01), (5, 0.05)]
    ]  # fmt: skip
    torch.testing.assert_close(rotate(x, cos, sin)[0, 0], torch.tensor(expected, dtype=torch.float64))


def test_llama3_rotary_scaling_by_hand():
    """Of waves that fit 8, 2 and 1/2 times into the original context, with 4 as high and 1 as low factor: the short one
    is kept, the long one stretched by the factor, and 2 stands a third of the way up the ramp."""
    config = small_model(head_dim=6).config
    config.rope_theta = 64.0  # frequencies 1, 1/4, 1/16
    config.rope_scaling = {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16 * math.pi,
    }  # fmt: skip
    cos, sin = rotary_tables(config, torch.tensor([[1]]), torch.float64)
    angles = torch.tensor([1, 2 / 3 * 1 / 16 + 1 / 3 * 1 / 4, 1 / 64] * 2, dtype=torch.float64)
    torch.testing.assert_close(cos[0, 0, 0], angles.cos())
    torch.testing.assert_close(sin[0, 0, 0], angles.sin())


@pytest.mark.parametrize("all_at_once", [2**23, 0])
@pytest.mark.parametrize("T", [1, 5])
def test_grouped_query_attention_is_attention_with_repeated_heads(monkeypatch, T, all_at_once):
    """Query heads 0 and 1 share key head 0, heads 2 and 3 key head 1. Few scores are computed all at once, many go
    another way; padding is hidden on both."""
    monkeypatch.setattr(model_module, "ALL_AT_ONCE", all_at_once)
    q, k, v = (torch.randn(2, heads, T if heads == 4 else 5, 8, dtype=torch.float64) for heads in (4, 2, 2))
    visible = torch.ones(T, 5, dtype=torch.bool).tril(5 - T).expand(2, 1, T, 5).clone()
    visible[1, ..., 0] = False
    visible[1, ..., 1] = True
    repeated = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, *repeated, attn_mask=visible)
    bias = torch.zeros(visible.shape, dtype=torch.float64).masked_fill_(~visible, -math.inf)
    torch.testing.assert_close(attend(q, k, v, bias), expected, **EXACT)


def reference_logits(model, tokens):
    """(T,) -> (T, V): the decoder once more, in numpy, head by head, with rotary angles as complex numbers."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config, T = model.config, len(tokens)
    D, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    turns = np.exp(1j * np.outer(np.arange(T), config.rope_theta ** (-np.arange(0, D, 2) / D)))  # (T, D/2)
    later = np.triu(np.ones((T, T), dtype=bool), 1)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def head_of(x, head):
        return x[:, head * D : (head + 1) * D]

    def turned(x):
        pairs = (x[:, : D // 2] + 1j * x[:, D // 2 :]) * turns
        return np.concatenate([pairs.real, pairs.imag], axis=1)

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        h = norm(x, f"{block}.input_layernorm")
        q, k, v = (linear(h, f"{block}.self_attn.{name}_proj") for name in "qkv")
        heads = []
        for head in range(config.num_attention_heads):
            scores = turned(head_of(q, head)) @ turned(head_of(k, head // group)).T / np.sqrt(D)
            scores = np.exp(np.where(later, -np.inf, scores))
            heads.append(scores / scores.sum(-1, keepdims=True) @ head_of(v, head // group))
        x = x + linear(np.concatenate(heads, axis=1), f"{block}.self_attn.o_proj")
        h = norm(x, f"{block}.post_attention_layernorm")
        gate = linear(h, f"{block}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"{block}.mlp.up_proj"), f"{block}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


@pytest.mark.parametrize("chunks", [12, 1])
def test_a_float64_model_computes_in_float64_throughout(chunks):
    """The theorems are checked to 1e-10; one norm, angle or softmax in float32 would leave an error of about 1e-7.

    Whole (T = 12) and token by token (T = 1), since attention has a path for each.
    """
    model = small_model(torch.float32, attention_bias=True)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.normal_(mean=1.0, std=0.3)
    model.double()
    tokens = some_tokens(1, 12)
    logits = cached_logits(model, tokens, chunks)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits[0], torch.from_numpy(reference_logits(model, tokens[0].numpy())), **EXACT)


# Skipping


def without_layers(model, skip):
    shorter = copy.deepcopy(model)
    shorter.model["layers"] = torch.nn.ModuleList(
        block for block, skipped in zip(shorter.model.layers, skip, strict=True) if not skipped
    )
    shorter.config.num_hidden_layers = len(shorter.model.layers)
    return shorter


@pytest.mark.parametrize("layers", [*combinations(range(L), 1), *combinations(range(L), 2)])
def test_skipping_layers_is_the_model_without_them(model, layers):
    """Invariant 3: D3's identity, neither more nor less; with a cache too, where layers keep their places."""
    skip = tuple(layer in layers for layer in range(L))
    shorter = without_layers(model, skip)
    tokens = some_tokens(2, 9)
    assert torch.equal(model(tokens, skip=skip), shorter(tokens))
    assert torch.equal(cached_logits(model, tokens, [5, 2, 1, 1], skip), cached_logits(shorter, tokens, [5, 2, 1, 1]))


@pytest.mark.parametrize("rank", [0, 3])
def test_a_skipped_block_becomes_its_bypass(model, rank):
    """By hand: block 1 of a copy adds a vector at position 0, elsewhere up · down · its normalised input + a vector."""
    by_hand = copy.deepcopy(model)
    C, generator = model.config.hidden_size, torch.Generator().manual_seed(0)
    shapes = (L, rank, C), (L, C, rank), (L, 2, C)
    bypass = Bypass(*(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes))
    down, up, (first, others) = (part[1] for part in vars(bypass).values())

    class Adds(torch.nn.Module):
        def forward(self, x, *_):
            update = model.model.layers[1].input_layernorm(x) @ (up @ down).T + others
            return x + torch.cat((first.expand(len(x), 1, C), update[:, 1:]), dim=1)

    by_hand.model.layers[1] = Adds()
    tokens = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    skip = tuple(layer == 1 for layer in range(L))
    torch.testing.assert_close(model(tokens, skip=skip, bypass=bypass), by_hand(tokens), **EXACT)
    assert torch.equal(model(tokens, bypass=bypass), model(tokens)), "with nothing skipped it does nothing"


def test_each_mask_is_another_model(model):
    """Guards the tests above and below against a skip that is ignored."""
    logits = torch.stack([model(some_tokens(1, 9), skip=skip) for skip in MASKS])
    assert torch.pdist(logits.flatten(1)).min() > 0.1


def test_no_mask_and_an_empty_mask_are_the_same(model):
    """Skip nothing and the nested model is the target: E1's ratio is then exactly 1."""
    tokens = some_tokens(2, 9)
    assert torch.equal(model(tokens), model(tokens, skip=[False] * L))


@pytest.mark.parametrize("skip", [(), (True,) * 3, (False,) * 5])
def test_a_mask_of_another_length_is_refused(model, skip):
    """A mask drawn for another model would skip the wrong layers in silence."""
    with pytest.raises(ValueError, match=rf"{len(skip)} entries.* 4 layers"):
        model(some_tokens(1, 3), skip=skip)


# The cache


@pytest.mark.parametrize("skip", MASKS)
def test_cached_logits_are_the_uncached_ones_under_every_mask(model, skip):
    """Invariant 2 rests on it: what sampling records is what a teacher-forced pass gives.

    The cache advances by what it was given once a forward, also where the first or the last layer is skipped: a cache
    that a layer advances would stand still then, or count twice.
    """
    tokens, prompts = some_tokens(3, 9), PromptCache(skip)
    logits = [model(tokens[:, :4], prompts, skip)]
    cache = KVCache(prompts, torch.arange(3), 9, skip)
    for start, end in [(4, 7), (7, 8), (8, 9)]:
        assert prompts.length == 4 and cache.length == start
        logits.append(model(tokens[:, start:end], cache, skip))
    assert cache.length == 9
    torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens, skip=skip), **EXACT)


@pytest.mark.parametrize("skip", MASKS)
def test_rows_of_different_lengths_give_what_each_gives_alone(model, skip):
    """Invariant 4: a prompt's neighbours decide how much padding stands before it, and nothing else."""
    rows = [some_tokens(1, length + 3, seed)[0] for seed, length in enumerate((8, 3, 1))]
    padded = torch.stack([F.pad(row, (11 - len(row), 0), value=17) for row in rows])
    padding = torch.tensor([11 - len(row) for row in rows])
    batched = cached_logits(model, padded, [8, 1, 1, 1], skip, padding)[
        :, -4:
    ]  # of the last prompt token, and decoding
    alone = torch.stack([model(row[None], skip=skip)[0, -4:] for row in rows])
    torch.testing.assert_close(batched, alone, **EXACT)


def test_rows_padded_on_the_right_need_no_cache(model):
    """Causal attention never looks there: so scoring a batch takes no mask, and any token will do as padding."""
    rows = [some_tokens(1, length, seed)[0] for seed, length in enumerate((8, 3, 1))]
    batched = model(torch.stack([F.pad(row, (0, 8 - len(row)), value=17) for row in rows]))
    for row, logits in zip(rows, batched, strict=True):
        torch.testing.assert_close(logits[: len(row)], model(row[None])[0], **EXACT)


def decoded(model, tokens, cache, skip=None):
    return torch.cat([model(chunk, cache, skip) for chunk in tokens.split(1, dim=1)], dim=1)


def after_prompts(model, skip, rows, max_length=6):
    """A cache of rows that follow the prompts rows[i] of 5, of lengths 4, 1, 3, 4, 2."""
    prompts = PromptCache(skip, padding=torch.tensor([0, 3, 1, 0, 2]))
    model(some_tokens(5, 4), prompts, skip)
    return KVCache(prompts, torch.tensor(rows), max_length, skip)


def test_completions_of_one_prompt_go_their_own_ways(model):
    """A prompt is read once for its whole group; what differs from then on must not cross between its rows."""
    skip, rows = (False, True, False, False), [i for i in range(5) for _ in range(3)]
    next_tokens = some_tokens(15, 2, seed=1)
    together = decoded(model, next_tokens, after_prompts(model, skip, rows), skip)
    for g in range(3):
        alone = decoded(model, next_tokens[g::3], after_prompts(model, skip, range(5)), skip)
        torch.testing.assert_close(together[g::3], alone, **EXACT)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [0, 4, 2], [3, 1], [4]])
def test_kept_rows_go_on_as_if_the_others_had_never_been(model, rows):
    """Invariant 4: finished rows leave, and rows from behind take their place together with their padding."""
    skip = (False, True, False, False)
    next_tokens = some_tokens(5, 2, seed=1)
    expected = decoded(model, next_tokens, after_prompts(model, skip, range(5)), skip)[rows]
    cache = after_prompts(model, skip, range(5))
    cache.keep_rows(torch.tensor(rows))
    torch.testing.assert_close(decoded(model, next_tokens[rows], cache, skip), expected, **EXACT)


@pytest.mark.parametrize("skip", [(False, True, False, False), (True,) * L])
def test_a_cache_that_holds_its_columns_gives_the_same_logits(model, skip):
    """What a captured step needs: no memory is allocated, and the column is a tensor. Also where no layer is left."""
    next_tokens = some_tokens(5, 2, seed=1)
    expected = decoded(model, next_tokens, after_prompts(model, skip, range(5)), skip)
    cache, logits = after_prompts(model, skip, range(5)), []
    cache.hold()
    for token in next_tokens.split(1, dim=1):
        logits.append(model(token, cache, skip))
        cache.next_column += 1
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **EXACT)


def test_skipped_layers_take_no_memory(model):
    """The cache is what bounds the batch when sampling; the nested model's is smaller by its skipped layers, whoever
    has read the prompt."""
    prompts = PromptCache()
    model(some_tokens(3, 4), prompts)
    cache = KVCache(prompts, torch.arange(3), 9, skip=(True, False, False, True))
    cache.reserve(5)
    assert [[x.shape for x in pair] for pair in cache.layers.values()] == [[(3, 2, 9, 8)] * 2] * 2
    assert cache.layers.keys() == {1, 2}


@pytest.mark.parametrize(("of_cache", "of_forward"), [(None, MASKS[2]), (MASKS[2], None), (MASKS[2], MASKS[4])])
def test_a_cache_made_for_another_mask_is_refused(model, of_cache, of_forward):
    """A mask that changes on the way is a hybrid, whose probabilities no pass could reproduce."""
    prompts = PromptCache()
    model(some_tokens(1, 3), prompts)
    rows = torch.tensor([0])
    for cache in (PromptCache(of_cache), CompletionCache(prompts, rows, of_cache), KVCache(prompts, rows, 9, of_cache)):
        before = cache.length
        with pytest.raises(ValueError, match="the cache was made for the skip mask"):
            model(some_tokens(1, 3), cache, of_forward)
        assert cache.length == before


def test_a_full_cache_refuses_more_and_stays_as_it_was(model):
    """Writing past the end must neither wrap around nor broadcast."""
    tokens, prompts = some_tokens(2, 6), PromptCache()
    model(tokens[:, :4], prompts)
    cache = KVCache(prompts, torch.arange(2), 5)
    with pytest.raises(ValueError, match=r"holds 5 tokens a row; 6 were asked for"):
        model(tokens[:, 4:], cache)
    torch.testing.assert_close(model(tokens[:, 4:5], cache), model(tokens[:, :5])[:, 4:], **EXACT)


def test_a_cache_of_one_pass_refuses_a_second_one(model):
    """It would attend to half of what it has read."""
    tokens, prompts = some_tokens(2, 6), PromptCache()
    model(tokens, prompts)
    with pytest.raises(ValueError, match="the prompts have been read"):
        model(tokens, prompts)
    cache = CompletionCache(prompts, torch.arange(2))
    model(tokens, cache)
    with pytest.raises(ValueError, match="the completions have been read"):
        model(tokens, cache)


# config.json

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
RAW = {
    "model_type": "llama", "vocab_size": 29, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
REFUSED = [  # what is added to RAW, and what the message must name
    ({"model_type": "mistral"}, "model_type.*'mistral'.*llama, qwen2, qwen3"),
    ({"model_type": None}, "model_type.*None"),
    ({"model_type": ["llama"]}, r"model_type.*\['llama'\]"),
    ({"hidden_act": "gelu"}, "hidden_act.*'gelu'.*'silu'"),
    ({"mlp_bias": True}, "mlp_bias.*True"),
    ({"use_sliding_window": True}, "use_sliding_window.*True"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor.*0.5"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding_attention"),
    ({"layer_types": 4}, "layer_types.*4"),
    ({"num_key_value_heads": 3}, "num_attention_heads is 4.*num_key_value_heads.*3"),
    ({"hidden_size": 33, "head_dim": None}, "hidden_size.*33.*num_attention_heads.*4"),
    ({"head_dim": 7}, "head_dim.*7"),
    ({"hidden_size": "32"}, "hidden_size.*'32'"),
    ({"num_attention_heads": "4", "head_dim": None}, "num_attention_heads.*'4'"),
    ({"num_hidden_layers": 4.0}, "num_hidden_layers.*4.0"),
    ({"vocab_size": [29]}, r"vocab_size.*\[29\]"),
    ({"intermediate_size": 0}, "intermediate_size.*0"),
    ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads.*0"),
    ({"num_attention_heads": -4}, "num_attention_heads.*-4"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps.*'1e-5'"),
    ({"attention_bias": "false"}, "attention_bias.*'false'"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings.*'no'"),
    ({"rope_theta": "10000"}, "rope_theta.*'10000'"),
    ({"rope_theta": 0}, "rope_theta.*0"),
    ({"rope_scaling": "linear"}, "rope_scaling.*'linear'"),
    ({"rope_parameters": ["default"]}, r"rope_parameters.*\['default'\]"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ({"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta is given twice.*500000.*10000"),
    ({"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_type": "llama3"}}, "llama3.*linear"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": "8"}}, "factor.*'8'"),
    *(
        ({"rope_scaling": {"rope_type": "llama3"} | {k: v for k, v in LLAMA3.items() if k != key}}, key)
        for key in LLAMA3
    ),
    *(
        (rope, f"'{kind}'")
        for kind in ("linear", "dynamic", "yarn", "longrope")
        for rope in (
            {"rope_scaling": {"type": kind, "factor": 2.0}},
            {"rope_scaling": {"rope_type": kind, "factor": 2.0}},
            {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}},
        )
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_a_configuration_that_is_not_implemented_is_refused_by_key_and_value(changes, message):
    """A setting that is ignored gives a model that runs and is wrong; a raw traceback does not say what to change."""
    with pytest.raises(ValueError, match=message):
        parse_config(RAW | changes)


@pytest.mark.parametrize("key", [key for key in RAW if key not in ("num_key_value_heads", "head_dim")])
def test_a_missing_key_is_named(key):
    """Sizes have no defaults: a guessed one would show as a wrong shape at best."""
    with pytest.raises(ValueError, match=key):
        parse_config({name: value for name, value in RAW.items() if name != key})


@pytest.mark.parametrize("absent", ["left out", "null"])
def test_llama_heads_have_the_defaults_that_its_files_rely_on(absent):
    """Llama 2 names neither: as many key heads as query heads, and heads that share the hidden size."""
    raw = {key: value for key, value in RAW.items() if key not in ("num_key_value_heads", "head_dim")}
    if absent == "null":
        raw |= {"num_key_value_heads": None, "head_dim": None}
    config = parse_config(raw)
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)


def test_both_spellings_of_the_rotary_settings_are_read():
    """transformers 4 wrote rope_theta and rope_scaling (its type once named `type`), 5 writes rope_parameters; a file
    with both is fine where they agree."""
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    newer = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000, **LLAMA3}}
    for rope in (older, newer, older | newer):
        config = parse_config(RAW | rope)
        assert (config.rope_theta, config.rope_scaling) == (5e5, {"rope_type": "llama3", **LLAMA3})
    plain = parse_config(RAW | {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}})
    assert (plain.rope_theta, plain.rope_scaling) == (10000.0, None)


def test_keys_that_are_not_read_survive_a_round_trip():
    """What others need of config.json, such as the end token, is still there after a run; nothing is read anew."""
    raw = RAW | {"eos_token_id": 2, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    raw |= {"extra": 1}  # a name that Config has another use for
    config = parse_config(raw)
    written = json.loads(json.dumps(config_json(config)))
    assert written["eos_token_id"] == 2
    assert config_json(parse_config(written)) == config_json(config)


# Folders


@pytest.fixture
def folder(tmp_path):
    """A whole checkpoint, untied, for a test to break."""
    small_model(torch.float32).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder):
    """Rewrites the checkpoint as two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {0: "model-00001-of-00002.safetensors", 1: "model-00002-of-00002.safetensors"}
    weight_map = {tensor: names[i % 2] for i, tensor in enumerate(sorted(tensors))}
    for name in names.values():
        save_file({tensor: tensors[tensor] for tensor in tensors if weight_map[tensor] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_loads_bit_equal(tmp_path, dtype, tied):
    """A run is stopped and taken up again; a tied head is one parameter, and is stored once."""
    model = small_model(dtype, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = Decoder.from_pretrained(tmp_path / "new" / "folder", dtype=dtype)
    assert same_weights(model, loaded)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert ("lm_head.weight" in load_file(tmp_path / "new" / "folder" / "model.safetensors")) is not tied
    assert all(parameter.requires_grad and parameter.dtype == dtype for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_the_callers_choice_and_not_the_files(folder, dtype):
    """Master weights are float32 where the file is bfloat16 (invariant 6); the config says what the file held."""
    model = Decoder.from_pretrained(folder, dtype=dtype)
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert same_weights(Decoder.from_pretrained(folder), model.float())


def test_a_stored_tied_head_is_accepted_if_it_is_the_embedding_and_refused_otherwise(tmp_path):
    """Some files store it all the same; one that differs was not tied, and half of its weights would be lost."""
    model = small_model(torch.float32, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert same_weights(Decoder.from_pretrained(tmp_path), model)
    edit_weights(tmp_path, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"tie_word_embeddings.*lm_head\.weight"):
        Decoder.from_pretrained(tmp_path)


def test_a_sharded_checkpoint_is_the_same_model(folder):
    """The index says which files belong to the model."""
    model = Decoder.from_pretrained(folder)
    shard(folder)
    assert same_weights(Decoder.from_pretrained(folder), model)


@pytest.mark.parametrize("whole", [True, False])
def test_a_single_file_wins_over_an_index(folder, recwarn, whole):
    """As in transformers: the index is of an older model, whether its files are still there or not."""
    shard(folder)
    for path in folder.glob("model-*") if not whole else ():
        path.unlink()
    newer = small_model(torch.float32, seed=1)
    save_file(dict(newer.state_dict()), folder / "model.safetensors")
    assert same_weights(Decoder.from_pretrained(folder), newer)
    assert [str(warning.message) for warning in recwarn.list] == [
        f"{folder}: model.safetensors is read, and not what {INDEX} lists"
    ]


def test_weights_stay_as_they_were_read_where_the_file_is_written_over(tmp_path):
    """Another run may save into the folder that --model names."""
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(5000)}, path)
    tensors = read_file(path, torch.float32, "cpu")
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensors["x"], torch.ones(5000))


def test_an_adapter_beside_a_model_is_said_not_to_be_read(folder):
    """transformers would read it; here it has a flag of its own."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="its adapter is not read; give it with --adapter"):
        Decoder.from_pretrained(folder)


def test_saving_over_a_sharded_checkpoint_replaces_it(folder):
    """An index left behind would send the next reader to the old weights."""
    shard(folder)
    trained = small_model(torch.float32, seed=1)
    trained.save_pretrained(folder)
    assert same_weights(Decoder.from_pretrained(folder), trained)


def test_rotary_buffers_of_old_files_are_no_weights(folder):
    """Llama 2 files hold one a layer; it is computed from the configuration here."""
    model = Decoder.from_pretrained(folder)
    edit_weights(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert same_weights(Decoder.from_pretrained(folder), model)


UP = "model.layers.2.mlp.up_proj.weight"


def truncate(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def point_nowhere(folder):
    """An index that gives a tensor to the shard that does not hold it, and leaves out the one that does."""
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


def lose_a_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def index_alone(text):
    return lambda folder: ((folder / "model.safetensors").unlink(), (folder / INDEX).write_text(text))


def older_tensor(folder):
    """A shard of an older model, which holds a tensor of another shard as well."""
    shard(folder)
    other, path = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(load_file(path) | {"lm_head.weight": load_file(other)["lm_head.weight"] + 1}, path)


INDEX = "model.safetensors.index.json"
BROKEN = [
    (truncate, "model.safetensors.*not a whole safetensors file"),
    (write("model.safetensors", ""), "model.safetensors.*not a whole safetensors file"),
    (lambda folder: edit_weights(folder, lambda t: t.pop(UP)), f"lacks {UP}"),
    (lambda folder: edit_weights(folder, lambda t: t.update(other=torch.ones(1))), "does not account for: other"),
    (lambda folder: edit_weights(folder, lambda t: t.update(other=t.pop(UP))), f"lacks {UP}.*; it holds other"),
    *(
        (
            lambda folder, prefix=prefix: edit_weights(
                folder, lambda t: t.update({prefix + name: t.pop(name) for name in list(t)})
            ),
            f"names begin with '{prefix}', of a wrapper",
        )
        for prefix in ("_orig_mod.", "module.", "base_model.model.")
    ),
    (
        lambda folder: edit_weights(folder, lambda t: t.update({UP: t[UP].T.contiguous()})),
        rf"wrong shape for {UP}: \[.*\], expected \[",
    ),
    *(
        (
            lambda folder, dtype=dtype: edit_weights(folder, lambda t: t.update({UP: t[UP].to(dtype)})),
            f"{UP} is {dtype}, of a quantised model",
        )
        for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool)
    ),
    (older_tensor, f"holds lm_head.weight, which {INDEX} says is in model-00001"),
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (write("config.json", "[]"), "config.json"),
    (write("config.json", "{"), "config.json"),
    (write("config.json", ""), "config.json"),
    (write("config.json", json.dumps(RAW | {"hidden_act": "gelu"})), "config.json.*hidden_act"),
    (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    (only_a_pickle, "pytorch_model.*save_pretrained"),
    (lose_a_shard, "model-00002-of-00002.safetensors"),
    (point_nowhere, "lacks .*in all"),
    (index_alone("{"), INDEX),
    (index_alone("[]"), INDEX),
    (index_alone("{}"), f"{INDEX}.*weight_map"),
    (index_alone('{"weight_map": ["a.safetensors"]}'), f"{INDEX}.*weight_map"),
    (index_alone('{"weight_map": {"a": 1}}'), f"{INDEX}.*weight_map"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_folder_is_refused_by_file_and_tensor(folder, damage, message):
    """Half a download or the wrong folder must not become a model with random weights in places."""
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        Decoder.from_pretrained(folder)
    assert str(folder) in str(refusal.value)
