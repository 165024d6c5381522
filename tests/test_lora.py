"""LoRA: nothing changes at its start, its gradient is that of the merged matrix, and PEFT reads what it leaves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import pay
from safetensors.torch import load_file
from test_resume import SHARD

import data
import train
from losses import group_advantages
from model import Config, Decoder
from rollout import completion_logprobs, completion_logprobs_naive, generate, generate_naive
from run import set_up
from support import lora
from support.fast import packed
from support.optimizer import Optimizer
from support.settings import Settings

SHARED = Path(__file__).parents[2] / "shared"
L = 4
SIZES = dict(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=L, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, rms_norm_eps=1e-5, max_position_embeddings=64,
)  # fmt: skip
KINDS = {"llama, tied": ("llama", True), "llama": ("llama", False), "qwen2": ("qwen2", False), "qwen3": ("qwen3", True)}
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
SKIP = (False, True, False, True)


def decoder(kind: str = "llama", dtype=torch.float64) -> Decoder:
    model_type, tied = KINDS[kind]
    torch.manual_seed(0)
    model = Decoder(Config(model_type, **SIZES, tie_word_embeddings=tied)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model


def learned(model: Decoder, rank: int = 3, targets=None) -> Decoder:
    """With adapters that have moved."""
    lora.add(model, rank, targets=targets)
    for layer in lora.adapted(model):
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    return model


TOKENS = torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_no_logit(kind, dtype):
    """B is 0: bit for bit the model as it was, with any layers skipped."""
    model = decoder(kind, dtype)
    before = [model(TOKENS, skip=skip) for skip in (None, SKIP)]
    lora.add(model, 3)
    assert all(torch.equal(model(TOKENS, skip=skip), logits) for skip, logits in zip((None, SKIP), before, strict=True))
    assert len(lora.adapted(model)) == 7 * L


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_the_logits_of_the_unmerged(kind):
    """To rounding; and the adapters stay what they are."""
    model = learned(decoder(kind))
    one = lora.merged(model)
    for skip in (None, SKIP):
        torch.testing.assert_close(one(TOKENS, skip=skip), model(TOKENS, skip=skip), rtol=0, atol=1e-12)
    assert not lora.adapted(one) and len(lora.adapted(model)) == 7 * L
    assert one.state_dict().keys() == decoder(kind).state_dict().keys()
    assert not torch.allclose(one(TOKENS), decoder(kind)(TOKENS), atol=1e-3), "else nothing was merged"


def test_gradients_are_those_of_the_merged_matrix():
    """With G the gradient of W + s B A: ∂/∂B = s G Aᵀ, ∂/∂A = s Bᵀ G."""
    model = learned(decoder())
    one = lora.merged(model)
    for decoder_ in (model, one):
        (decoder_(TOKENS).logsumexp(dim=-1) * torch.arange(9)).sum().backward()
    plain = {name: module for name, module in one.named_modules() if name.endswith("_proj")}
    for name, layer in model.named_modules():
        if isinstance(layer, lora.AdaptedLinear):
            G, A, B = plain[name].weight.grad, layer.lora_A.weight, layer.lora_B.weight
            torch.testing.assert_close(B.grad, lora.SCALE * G @ A.T, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(A.grad, lora.SCALE * B.T @ G, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tied", ["llama", "llama, tied"])
def test_nothing_frozen_has_a_gradient_and_the_optimiser_holds_the_adapters_alone(tied):
    model = learned(decoder(tied, torch.bfloat16))
    rollout = generate(model, PROMPTS, 2, 5, [0], seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model)
    advantages = group_advantages(torch.tensor([[0.0, 1.0]] * 3)).flatten()
    train.update(model, optimizer, rollout, advantages, Settings(), 1e-2)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(optimizer.names) == {name for name in before if ".lora_" in name}
    assert all(p.grad is None for p in model.parameters())
    assert all(master.dtype == torch.float32 for master in optimizer.masters)


def test_a_skipped_blocks_adapters_are_skipped_with_it():
    """D3 is of the whole block: they change no logit and have no gradient."""
    model = learned(decoder())
    before = model(TOKENS, skip=SKIP)
    before.sum().backward()
    for layer, skipped in enumerate(SKIP):
        for adapter in lora.adapted(model.model.layers[layer]):
            assert (adapter.lora_A.weight.grad is None) == skipped
            if skipped:
                torch.nn.init.normal_(adapter.lora_B.weight)
    assert torch.equal(model(TOKENS, skip=SKIP), before)


@pytest.mark.parametrize("kinds", [lora.LAYERS, ["q_proj", "v_proj"], ["k_proj", "up_proj"]], ids=" ".join)
@pytest.mark.parametrize("skip, full_prefill", [(None, False), (SKIP, False), (SKIP, True)])
def test_sampling_and_scoring_are_the_naive_ones(skip, full_prefill, kinds):
    """The cache, prompts that are shared, and rows that leave, with adapters on all layers or on some."""
    model = decoder()
    model = learned(model, targets=lora.of_kinds(model, kinds))
    how = {"skip": skip, "full_prefill": full_prefill}
    fast, plain = (sampler(model, PROMPTS, 3, 6, [0], seed=5, **how) for sampler in (generate, generate_naive))
    assert torch.equal(fast.tokens, plain.tokens)
    torch.testing.assert_close(fast.logprobs, plain.logprobs)
    one, other = (
        of(model, fast.prompts, fast.tokens, fast.mask, **how)[0]
        for of in (completion_logprobs, completion_logprobs_naive)
    )
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.where(fast.mask, 0), fast.logprobs)


def test_gradient_checkpointing_and_micro_batches_change_no_gradient():
    def gradients(checkpointing: bool, tokens: int) -> list[torch.Tensor]:
        model = learned(decoder())
        model.gradient_checkpointing = checkpointing
        rollout = generate(model, PROMPTS, 2, 5, [0], seed=1)
        optimizer = Optimizer(model)
        found = []
        optimizer.step = lambda *_: found.extend(optimizer.sums) or 0.0
        advantages = group_advantages(torch.tensor([[0.0, 1.0]] * 3)).flatten()
        train.update(model, optimizer, rollout, advantages, Settings(micro_batch_tokens=tokens), 1e-3)
        return found

    whole = gradients(False, 10_000)
    for other in (gradients(True, 10_000), gradients(False, 1)):
        for one, same in zip(whole, other, strict=True):
            torch.testing.assert_close(same, one, rtol=1e-5, atol=1e-7)


def test_packed_for_sampling_it_is_the_same_model():
    model = learned(decoder(dtype=torch.bfloat16))
    torch.testing.assert_close(packed(model, 3)(TOKENS), model(TOKENS), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_scale_of_an_adapter_goes_with_it(tmp_path, scale):
    """α of PEFT's configuration: an adapter of another scale than ours is the larger or smaller change that it was."""
    model = decoder()
    lora.add(model, 3, scale)
    for layer in lora.adapted(model):
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    lora.save(model, tmp_path, "base")
    lora.load(other := decoder(), tmp_path)
    assert torch.equal(other(TOKENS), model(TOKENS)) and lora.read(tmp_path).scale == scale


def test_a_merged_matrix_is_rounded_once():
    """In bfloat16: W + s B A is summed exactly. A product that was rounded before would be another matrix."""
    model = learned(decoder(dtype=torch.bfloat16))
    layer = lora.adapted(model)[0]
    W, A, B = (x.detach().double() for x in (layer.base_layer.weight, layer.lora_A.weight, layer.lora_B.weight))
    off = (layer.merged().weight.double() - (W + layer.scale * B @ A)).abs()
    spacing = 2.0 ** (torch.frexp(layer.merged().weight.float())[1].double() - 8)
    assert (off <= spacing / 2 * 1.001).all()


def test_no_two_adapters_begin_alike(checkpoint, tmp_path):
    """A is drawn for each layer, and anew for another seed."""
    given = {"model": str(checkpoint), "device": "cpu", "lora_rank": 2}
    runs = [set_up(given | {"seed": seed, "out": str(tmp_path / str(seed))}) for seed in (0, 1)]
    drawn = [layer.lora_A.weight for run in runs for layer in lora.adapted(run.model)]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if a.shape == b.shape)


# ---- what a run leaves


FLAGS = [
    *"--device cpu --dtype bfloat16 --warmup-epochs 1 --warmup-batch 100 --steps 4 --prompts 2 --samples 3".split(),
    *"--max-new-tokens 4 --eval-every 2 --eval-problems 2 --save-every 2 --skip-ratio 0.5 --measure-every 2".split(),
    *"--lora-rank 3".split(),
]


@pytest.fixture
def easy(monkeypatch):
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: load(*given)[:20])
    pay(monkeypatch, lambda text, p, g: len(text) % 2 == 0)


def weights(folder):
    return Decoder.from_pretrained(folder, dtype=torch.bfloat16).state_dict()


def test_a_run_that_was_stopped_is_bit_for_bit_the_one_that_was_not(checkpoint, tmp_path, easy, capsys):
    """The base comes from --model, the adapters from the checkpoint, the masters and moments from training/."""
    whole, parts = (str(tmp_path / name) for name in ("whole", "parts"))
    flags = [*FLAGS, "--model", str(checkpoint), "--out"]
    assert train.main([*flags, whole]) == 0
    assert "million of rank 3 learn" in capsys.readouterr().out
    assert train.main([*flags, parts, "--steps", "2"]) == 0
    assert train.main(["--out", parts, "--resume", "--steps", "4"]) == 0
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", f"training/optimizer/{SHARD}"):
        one, other = (load_file(tmp_path / run / "checkpoint" / name) for run in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    trained, base = weights(tmp_path / "whole/checkpoint"), weights(checkpoint)
    changed = {name for name in base if not torch.equal(trained[name], base[name])}
    assert changed and all(name.endswith("_proj.weight") for name in changed)


def test_a_resume_on_another_base_is_refused(checkpoint, tmp_path, easy, capsys):
    """Adapters mean nothing beside other weights: the folder of --model may have changed since."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    flags = [*FLAGS, "--model", str(model), "--out", str(tmp_path / "out")]
    assert train.main(flags) == 0
    other = Decoder.from_pretrained(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(model)
    assert train.main(["--out", str(tmp_path / "out"), "--resume", "--steps", "6"]) == 2
    assert f"the model in {model} is not the one that the run began with" in capsys.readouterr().err


def test_a_run_goes_on_from_an_adapter(checkpoint, tmp_path, easy, capsys):
    """With its rank; and with no step it leaves what it was given."""
    flags = ["--model", str(checkpoint), "--device", "cpu", "--dtype", "bfloat16", "--max-new-tokens", "4"]
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(tmp_path / "first")]) == 0
    adapter = tmp_path / "first/checkpoint/adapter"
    flags += ["--adapter", str(adapter), "--steps", "0", "--out", str(tmp_path / "second")]
    assert train.main(flags) == 0
    first, second = (weights(tmp_path / name / "checkpoint") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "second/config.json").read_text())["lora_rank"] == 3
    capsys.readouterr()
    assert train.main([*flags[:-1], str(tmp_path / "third"), "--lora-rank", "2"]) == 2
    assert f"--lora-rank is 2, but {adapter} has rank 3" in capsys.readouterr().err
    flags[1] = str(tmp_path / "first/checkpoint")
    assert train.main([*flags[:-1], str(tmp_path / "third")]) == 2
    assert "is merged into" in capsys.readouterr().err, "the change would come twice"


BROKEN = {
    "no configuration": (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter"),
    "fewer layers": (lambda folder: configure(folder, target_modules=["q_proj"]), "implemented are adapters on q_proj"),
    "other layers": (
        lambda folder: configure(folder, target_modules=["q_proj", "lm_head"]),
        "lora_A.weight is missing",
    ),
    "another kind": (lambda folder: configure(folder, peft_type="IA3"), "peft_type is 'IA3'"),
    "ranks of layers": (lambda folder: configure(folder, rank_pattern={"q_proj": 2}), "rank_pattern"),
    "another rank": (lambda folder: configure(folder, r=4), "of another shape"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "pickled weights": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "with PEFT and save_pretrained writes it",
    ),
    "half a file": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "not a whole safetensors"),
}


def configure(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("fault", BROKEN)
def test_an_adapter_that_does_not_fit_is_refused_by_name(checkpoint, tmp_path, easy, capsys, fault):
    lora.save(learned(Decoder.from_pretrained(checkpoint)), tmp_path / "adapter", str(checkpoint))
    break_it, said = BROKEN[fault]
    break_it(tmp_path / "adapter")
    flags = ["--model", str(checkpoint), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]
    assert train.main([*flags, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and "Traceback" not in error
    assert not (tmp_path / "out").exists()


CHANGES = [  # settings of PEFT's under which the same tensors are another model
    *({"init_lora_weights": way} for way in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica")),
    {"alora_invocation_tokens": [1, 2]},
    {"use_dora": True},
    {"use_qalora": True, "qalora_group_size": 8},
    {"lora_bias": True},
    {"bias": "all"},
    {"fan_in_fan_out": True},
    {"layer_replication": [[0, 2], [1, 3]]},
    {"trainable_token_indices": [5]},
    {"target_parameters": ["mlp.up_proj.weight"]},
    {"modules_to_save": ["lm_head"]},
    {"alpha_pattern": {"q_proj": 4}},
    {"a_key_that_nobody_knows": True},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: " ".join(map(str, next(iter(changes.items())))))
def test_an_adapter_that_is_not_plain_lora_is_refused_by_the_key(tmp_path, changes):
    """Its tensors load and mean another model: PiSSA has taken the largest singular vectors out of W, DoRA rescales."""
    lora.save(learned(decoder()), tmp_path, "base")
    configure(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"adapter_config.json: .*{next(iter(changes))} is "):
        lora.load(decoder(), tmp_path)


@pytest.mark.parametrize("start", lora.STARTS)
def test_what_says_nothing_about_the_logits_is_no_reason_to_refuse(tmp_path, start):
    """Where A and B began, what PEFT notes for itself, and keys of later versions that are null, false or empty."""
    model = learned(decoder())
    lora.save(model, tmp_path, "base")
    empty = {"some_key": None, "another": False, "a_third": {}, "a_fourth": [], "megatron_core": "megatron.core"}
    configure(tmp_path, init_lora_weights=start, peft_version="9", lora_dropout=0.1, revision="main", **empty)
    lora.load(other := decoder(), tmp_path)
    torch.testing.assert_close(other(TOKENS), model(TOKENS))


def test_an_adapter_that_peft_began_with_pissa_is_refused():
    """As PEFT wrote it. Never trained, so it is its base; read as plain LoRA it would change the logits by ten."""
    if not (folder := SHARED / "cases" / "faults" / "zero_pissa").is_dir():
        pytest.skip(f"needs {folder}")
    with pytest.raises(ValueError, match="init_lora_weights is 'pissa'"):
        lora.load(Decoder.from_pretrained(data.EMBEDDED), folder)


ON_SOME = {  # target modules as PEFT takes them: the adapted layers of four, and of what kinds
    "q and v": ({"target_modules": ["q_proj", "v_proj"]}, ["q_proj", "v_proj"], range(L)),
    "a regex": ({"target_modules": r".*\.[12]\..*(down|up)_proj"}, ["up_proj", "down_proj"], (1, 2)),
    "all-linear": ({"target_modules": "all-linear"}, lora.LAYERS, range(L)),
    "some layers": ({"target_modules": ["o_proj"], "layers_to_transform": [0, 3]}, ["o_proj"], (0, 3)),
    "but for": ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, ["q_proj"], range(L)),
    "a name": ({"target_modules": ["model.layers.2.self_attn.k_proj"]}, ["k_proj"], (2,)),
    "rank-stabilised": ({"target_modules": ["q_proj"], "use_rslora": True}, ["q_proj"], range(L)),
}


@pytest.mark.parametrize("targets", ON_SOME)
def test_adapters_on_some_layers_are_read_as_peft_reads_them(tmp_path, targets):
    """Those on q and v alone are the commonest. What is saved again gives PEFT the same logits, and the same here."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development requirement")
    peft = pytest.importorskip("peft", reason="peft is a development requirement")
    settings, kinds, layers = ON_SOME[targets]
    decoder("qwen3", torch.float32).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **settings))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Decoder.from_pretrained(tmp_path / "base")
    lora.load(ours, tmp_path / "theirs")
    adapted = {name for name, module in ours.named_modules() if isinstance(module, lora.AdaptedLinear)}
    assert {name.split(".")[-1] for name in adapted} == set(kinds)
    assert {int(name.split(".")[2]) for name in adapted} == set(layers)
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=0, atol=1e-5)
    lora.save(ours, tmp_path / "ours", str(tmp_path / "base"))
    lora.load(again := Decoder.from_pretrained(tmp_path / "base"), tmp_path / "ours")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(TOKENS), ours(TOKENS))
        torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), rtol=0, atol=1e-5)


def test_a_run_goes_on_from_adapters_on_some_layers_and_is_resumed(checkpoint, tmp_path, easy):
    """They alone learn, and are what the run leaves."""
    model = Decoder.from_pretrained(checkpoint)
    lora.add(model, 3, targets={"model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"})
    lora.save(model, tmp_path / "adapter", str(checkpoint))
    flags = ["--model", str(checkpoint), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]
    assert train.main([*FLAGS[:-2], *flags]) == 0
    assert train.main(["--out", str(tmp_path / "out"), "--resume", "--steps", "6"]) == 0
    left, base = weights(tmp_path / "out/checkpoint"), weights(checkpoint)
    changed = {name for name in base if not torch.equal(left[name], base[name])}
    assert changed == {f"model.layers.1.self_attn.{kind}_proj.weight" for kind in "qv"}
    found = lora.read(tmp_path / "out/checkpoint/adapter")
    assert {name.removeprefix("model.layers.1.self_attn.") for name in found.targets} == {"q_proj", "v_proj"}


def test_an_adapter_of_another_base_is_said(checkpoint, tmp_path, recwarn):
    """Of one shape it would load, and change a model that it was not made for. A moved folder is no other base."""
    other = shutil.copytree(checkpoint, tmp_path / "other")
    for base, warned in (
        (checkpoint, 0),
        (f"someone/{checkpoint.name}", 0),
        ("someone/else", 1),
        (other, 1),
        ("/gone/checkpoint", 1),
    ):
        lora.save(learned(Decoder.from_pretrained(checkpoint)), tmp_path / "adapter", str(base))
        lora.check(tmp_path / "adapter", str(checkpoint), 0)
        assert [str(warning.message) for warning in recwarn.list] == warned * [
            f"--adapter {tmp_path / 'adapter'} was trained on {base}, and --model is {checkpoint}"
        ]
        recwarn.clear()
    namesake = shutil.copytree(checkpoint, tmp_path / "elsewhere" / checkpoint.name)  # is there: nothing was moved
    lora.save(learned(Decoder.from_pretrained(checkpoint)), tmp_path / "adapter", str(namesake))
    with pytest.warns(UserWarning, match=f"was trained on {namesake}, and --model is {checkpoint}"):
        lora.check(tmp_path / "adapter", str(checkpoint), 0)


def test_peft_loads_the_adapter_to_the_same_logits(tmp_path):
    """And saves it so that it is read here."""
    transformers = pytest.importorskip("transformers", reason="transformers is a development requirement")
    peft = pytest.importorskip("peft", reason="peft is a development requirement")
    model = learned(decoder("qwen2", torch.float32))
    lora.save(model, tmp_path / "adapter", str(tmp_path / "base"))
    decoder("qwen2", torch.float32).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    again = Decoder.from_pretrained(tmp_path / "base")
    lora.load(again, tmp_path / "again")
    assert torch.equal(again(TOKENS), model(TOKENS))
