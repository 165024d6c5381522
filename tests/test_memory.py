"""What a run says it needs is what its tensors take, and what cannot fit is refused before anything is read."""

import pytest
import torch

import train
from cache import KVCache, PromptCache
from model import Config, Decoder
from rollout import completion_logprobs
from run import set_up
from support import lora, memory, pretrained
from support.batches import pad_right
from support.fast import packed
from support.optimizer import Optimizer
from support.settings import Settings

PROMPT, NEW, ROWS = 24, 40, 8
CPU = torch.device("cpu")


def decoder(dtype: str) -> Decoder:
    sizes = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5)
    config = Config("llama", 400, 64, 160, 4, **sizes, max_position_embeddings=128, tie_word_embeddings=True)
    return Decoder(config).to(getattr(torch, dtype))


def parts_of(model: Decoder, **settings) -> dict[str, float]:
    s = Settings(prompts=1, samples=ROWS, max_new_tokens=NEW, micro_batch_tokens=10**6, **settings)
    return memory.needed(model, s, PROMPT, CPU)


def kept_for_backward(model: Decoder) -> int:
    """Bytes of the tensors that a pass over the whole batch, a prompt a row, leaves for its backward pass, without the
    weights themselves."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, alive = {}, []

    def keep(x):
        alive.append(x)  # a storage that is freed could be counted twice, or its address be taken again
        if (storage := x.untyped_storage()).data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    tokens, mask = pad_right([[1] * NEW] * ROWS, CPU)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        completion_logprobs(model, [[row] * PROMPT for row in range(ROWS)], tokens, mask)
    return sum(sizes.values())


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_adamw_are_counted_to_the_byte(dtype, rank):
    model = decoder(dtype)
    if rank:
        lora.add(model, rank)
    optimizer = Optimizer(model)
    for p in optimizer.working:
        p.grad = torch.ones_like(p)
    optimizer.collect_gradients()
    optimizer.step(1e-3, 0)
    parts, state = parts_of(model, dtype=dtype, lora_rank=rank), optimizer.state()
    weights = sum(p.nbytes for p in model.parameters())
    assert parts["weights"] - memory.OTHERS == weights
    assert parts["AdamW"] == sum(x.nbytes for name, x in state.items() if not name.startswith("step."))


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_update_is_what_the_backward_pass_needs(dtype, checkpointing, rank):
    """Within a third; where blocks are recomputed, a block more than lies there between the passes."""
    model = decoder(dtype)
    if rank:
        lora.add(model, rank)
    model.gradient_checkpointing = checkpointing
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    settings = {"dtype": dtype, "gradient_checkpointing": checkpointing, "lora_rank": rank}
    said = parts_of(model, **settings)["update"] - memory.HEAD - learns * (6 if dtype == "bfloat16" else 4)
    found = kept_for_backward(model)
    if checkpointing:
        model.gradient_checkpointing = False
        found += kept_for_backward(model) / model.config.num_hidden_layers
    assert 0.75 * found < said < 1.33 * found


def test_sampling_is_the_cache_and_the_packed_matrices():
    model = decoder("bfloat16")
    prompts = PromptCache()
    model(torch.zeros((1, PROMPT), dtype=torch.int64), prompts)
    cache = KVCache(prompts, torch.zeros(ROWS, dtype=torch.int64), PROMPT + NEW)
    cache.reserve(NEW)
    matrices = [module for module in packed(model, ROWS).modules() if type(module).__name__ == "PrepackedLinear"]
    assert len(matrices) == 4 * 7 + 1, "else there is nothing packed to count"
    linear = sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Linear))
    stored = sum(x.nbytes for pair in cache.layers.values() for x in pair)
    probabilities = ROWS * 400 * (2 + 3 * 4)
    assert parts_of(model, dtype="bfloat16")["sampling"] == linear + stored + probabilities


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_is_adamw_twice_and_the_merged_matrices(dtype, rank):
    """dcp copies AdamW's part and serialises the copy; of adapters the whole model is made once more. And the peak has
    it, beside the larger of sampling and update."""
    model = decoder(dtype)
    if rank:
        lora.add(model, rank)
    parts = parts_of(model, dtype=dtype, lora_rank=rank)
    merged = sum(layer.base_layer.weight.nbytes for layer in lora.adapted(model))
    if rank:  # to norms and adapters, which are counted and not made again
        small = sum(p.nbytes for name, p in model.named_parameters() if "lora_" in name or name.endswith("norm.weight"))
        merged = pytest.approx(merged, abs=small)
    assert parts["saving"] - 2 * parts["AdamW"] == merged
    assert memory.peak(parts) == parts["weights"] + parts["AdamW"] + parts["update"] + parts["saving"]
    assert memory.peak(parts | {"sampling": 1e12}) == parts["weights"] + parts["AdamW"] + 1e12 + parts["saving"]


def test_a_run_that_cannot_fit_is_refused_before_its_weights_are_read(checkpoint, tmp_path, monkeypatch, capsys):
    """With what it needs, what there is, and what to change."""
    monkeypatch.setattr(memory, "free", lambda device: 1e4)
    monkeypatch.setattr(pretrained, "read_safetensors", lambda *_: pytest.fail("the weights were read"))
    assert train.main(["--model", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the run needs about 0.") and "; 1e-05 are free; try --dtype bfloat16, " in said
    assert "--lora-rank 16, --gradient-checkpointing, a lower --micro-batch-tokens, or a smaller model" in said
    assert not (tmp_path / "out").exists()


def test_a_run_that_may_not_fit_is_warned_of(checkpoint, tmp_path, monkeypatch):
    """Completions may be shorter than they are allowed to be."""
    monkeypatch.setattr(memory, "free", lambda device: 5e7)
    with pytest.warns(UserWarning, match="the memory may not suffice.*--lora-rank 16"):
        run = set_up({"model": str(checkpoint), "device": "cpu", "out": str(tmp_path / "out")})
    run.lock.release()
    assert run.memory_report.endswith("; 0.05 are free")


@pytest.mark.parametrize("size, said", [(1.66e11, "166"), (9.96e10, "100"), (1.74e10, "17"), (5.9e7, "0.059")])
def test_sizes_are_said_in_two_digits_or_whole(size, said):
    assert memory.in_gb(size) == said


def test_in_bfloat16_a_model_of_which_all_learns_needs_more():
    """20 bytes a weight in place of 16: it is no way out then."""
    config = Config("llama", 32_000, 4096, 11_008, 32, 32, 32, 128, rms_norm_eps=1e-5, max_position_embeddings=4096)
    with torch.device("meta"):
        model = Decoder(config)
    assert "--dtype" not in memory.ways_out(model, Settings(), 200, torch.device("cuda"))
