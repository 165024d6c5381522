"""The same weights give the same logits here and in transformers, from the same files, in both directions.

Tiny random models of every variant that model.py implements; one slow test with a real checkpoint. Biases and norm
weights are random too: at their initial 0 and 1 a forgotten one would not show.
"""

import json
import os

import pytest
import torch

from cache import KVCache, PromptCache
from model import Decoder
from support.tokenizer import ASK, Tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is a development requirement")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {  # of the 4 frequencies one is kept, one on the ramp, two are stretched
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("llama", {}),
    "llama-bias": ("llama", {"attention_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    # Not a key that Qwen2 reads: its biases are on q, k and v whatever it says.
    "qwen2": ("qwen2", {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}
TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(folder, their model, ours loaded from the folder that theirs was saved to)."""
    model_type, settings = CASES[request.param]
    config = transformers.AutoConfig.for_model(model_type, **SIZES | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        for name, parameter in theirs.named_parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return folder, theirs, Decoder.from_pretrained(folder)


@torch.no_grad()
def logits_of(theirs, tokens):
    return theirs(tokens, use_cache=False).logits


def some_tokens(rows=2, length=100):
    """Long enough to pass the 64 positions that the Llama 3 scaling starts from."""
    return torch.randint(SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_are_transformers_with_and_without_a_cache(pair):
    """Prefill, a second chunk and decoding are three code paths; all must be the model that the checkpoint means."""
    _, theirs, ours = pair
    tokens = some_tokens()
    expected = logits_of(theirs, tokens)
    torch.testing.assert_close(ours(tokens), expected, **TOLERANCE)
    prompt, *chunks = tokens.split([50, 30] + [1] * 20, dim=1)
    prompts = PromptCache()
    logits, cache = [ours(prompt, prompts)], KVCache(prompts, torch.arange(2), max_length=100)
    logits += [ours(chunk, cache) for chunk in chunks]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **TOLERANCE)


@torch.no_grad()
def test_a_row_padded_on_the_left_has_the_logits_of_transformers_row_alone(pair):
    """Prompts of a batch differ in length; the shorter must not notice, in prefill nor in decoding."""
    _, theirs, ours = pair
    lengths, width = [90, 13, 1], 90
    rows = [some_tokens(1, length + 5)[0] for length in lengths]
    padded = torch.stack([torch.nn.functional.pad(row, (width + 5 - len(row), 0)) for row in rows])
    padding = width - torch.tensor(lengths)
    prompt, *chunks = padded.split([width] + [1] * 5, dim=1)
    prompts = PromptCache(padding=padding)
    logits, cache = [ours(prompt, prompts)], KVCache(prompts, torch.arange(3), max_length=width + 5)
    logits += [ours(chunk, cache) for chunk in chunks]
    batched = torch.cat(logits, dim=1)[:, -6:]  # (3, 6, V): of the prompt's last token and the decoded ones
    alone = torch.stack([logits_of(theirs, row[None])[0, -6:] for row in rows])
    torch.testing.assert_close(batched, alone, **TOLERANCE)


def test_a_sharded_checkpoint_is_the_single_file(pair, tmp_path):
    """Larger models come in several files with an index."""
    _, theirs, ours = pair
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = Decoder.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in ours.state_dict().items())


@torch.no_grad()
def test_both_spellings_of_the_configuration_are_the_same_model(pair, tmp_path):
    """Files in the world are from transformers 4 (rope_theta, rope_scaling, torch_dtype), new ones from 5."""
    folder, _, ours = pair
    config = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in config, "transformers 5 is expected to write its own spelling"
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    older = Decoder.from_pretrained(tmp_path)
    assert older.config.rope_theta == ours.config.rope_theta
    assert older.config.rope_scaling == ours.config.rope_scaling
    assert torch.equal(older(some_tokens()), ours(some_tokens()))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_we_save_loads_in_transformers_strictly(pair, dtype, tmp_path):
    """The product of a run is a folder that others use: all weights found, in the dtype that they were saved in."""
    folder, _, _ = pair
    ours = Decoder.from_pretrained(folder, dtype=dtype)
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.dtype == dtype
    # The weights are compared, and not the rounding of two bfloat16 passes: so both go back to float32.
    torch.testing.assert_close(ours.float()(some_tokens()), logits_of(theirs.float(), some_tokens()), **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-3)])
@torch.no_grad()
def test_a_real_checkpoint_on_a_chat_prompt(dtype, atol):
    """Tiny models have no trained outliers, no chat template and no long prompts of real words."""
    folder = os.environ.get("NESTED_REFT_CHECKPOINT")
    if not folder:
        pytest.skip("set NESTED_REFT_CHECKPOINT to a checkpoint's folder, such as SmolLM2-135M-Instruct's")
    question = "Natalia sold 48 clips in April and half as many in May. How many did she sell in all?"
    ids = Tokenizer(folder).encode_prompt(question)
    messages = [{"role": "user", "content": f"{question}\n{ASK}"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ours = Decoder.from_pretrained(folder, dtype=dtype)
    tokens = torch.tensor([ids])
    torch.testing.assert_close(ours(tokens), logits_of(theirs, tokens), rtol=0, atol=atol)
