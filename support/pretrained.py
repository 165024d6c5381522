"""A Hugging Face folder in, a Decoder out, and back.

Names of parameters and of configuration keys are Hugging Face's, so nothing is mapped. Loading is strict: a setting
that the decoder does not implement, and a tensor too many or too few, is refused by name. Weights come from
safetensors alone; nothing is unpickled.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import data
from model import Config, Decoder
from support.tokenizer import Tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ONLY_IMPLEMENTED = {  # keys of config.json of which the decoder knows one value
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
NUMBERS = {int: "a positive whole number", float: "a positive number", bool: "true or false"}
LLAMA3_ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
INDEX = "model.safetensors.index.json"
READ = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # of a repository of the hub
NOT_READ = ["*/*", "consolidated*"]  # the same weights in other formats or precisions, and earlier checkpoints


def load_model(name: str | Path, dtype: str, device: str, template: str | None = None) -> tuple[Decoder, Tokenizer]:
    """The model and tokenizer of a checkpoint, or with no name of the embedded one; `dtype` and `device` as typed.

    Raises ValueError or OSError that names the file, the key or the flag at fault.
    """
    folder = find_checkpoint(name or data.EMBEDDED)
    tokenizer = Tokenizer(folder, template)
    model = load(folder, getattr(torch, dtype), pick_device(device))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}"
        )
    return model, tokenizer


def load_outline(name: str | Path, template: str | None = None) -> tuple[Decoder, Tokenizer]:
    """The same without the weights: their shapes alone, on the device "meta"."""
    folder = find_checkpoint(name or data.EMBEDDED)
    tokenizer = Tokenizer(folder, template)
    return outline(folder), tokenizer


def load(folder_or_hub_id: str | Path, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """`Decoder.from_pretrained`. Raises ValueError or OSError that names the file and the key or tensor at fault."""
    folder = find_checkpoint(folder_or_hub_id)
    model = outline(folder)
    tensors = read_safetensors(folder, dtype, device)
    if model.config.tie_word_embeddings:  # files hold the head or leave it out
        embedding = tensors.get("model.embed_tokens.weight")
        if embedding is not None and not torch.equal(tensors.setdefault("lm_head.weight", embedding), embedding):
            raise ValueError(f"{folder}: tie_word_embeddings is true, but lm_head.weight differs from the embedding")
    expected = {name: parameter.shape for name, parameter in model.state_dict().items()}
    wrong_shapes = {
        f"{name}: {list(tensors[name].shape)}, expected {list(expected[name])},"
        for name in expected.keys() & tensors
        if expected[name] != tensors[name].shape
    }
    for complaint, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("holds tensors that config.json does not account for:", tensors.keys() - expected.keys()),
        ("holds a wrong shape for", wrong_shapes),
    ):
        if names:
            there = next((n for n in tensors if n not in expected), "")
            prefix = next((there.removesuffix(name) for name in expected if there.endswith(f".{name}")), "")
            hint = f"; its names begin with {prefix!r}, of a wrapper: save the model inside of it" if prefix else ""
            hint = hint or f"; it holds {there}" * bool(there and complaint == "lacks")
            raise ValueError(
                f"{folder}: the checkpoint {complaint} {', '.join(sorted(names)[:3])} ({len(names)} in all){hint}"
            )
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model


def outline(folder: Path) -> Decoder:
    """The model that config.json describes, on the device "meta": shapes without values."""
    try:
        config = parse_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except ValueError as error:  # broken JSON is a ValueError too
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    with torch.device("meta"):
        return Decoder(config)


def save(model: Decoder, folder: str | Path) -> None:
    """`Decoder.save_pretrained`: config.json and model.safetensors, a tied head once, no shards of an older model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    dtype = str(model.dtype).removeprefix("torch.")
    spellings = {"dtype": dtype, "torch_dtype": dtype}  # of transformers 5 and 4
    config = {"architectures": [ARCHITECTURES[model.config.model_type]], **config_json(model.config), **spellings}
    write_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})
    for path in [folder / INDEX, *folder.glob("model-*-of-*.safetensors")]:
        path.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# ---- config.json


def parse_config(raw: dict) -> Config:
    """config.json's content as a Config; ValueError names the key of what is missing or not implemented."""
    if not isinstance(raw, dict):
        raise ValueError(f"expected a JSON object, got {str(raw)[:80]}")
    if raw.get("model_type") not in tuple(ARCHITECTURES):  # a tuple: the value may be a list
        raise ValueError(f"model_type is {raw.get('model_type')!r}; implemented are {', '.join(ARCHITECTURES)}")
    for key, value in ONLY_IMPLEMENTED.items():
        if raw.get(key, value) not in (None, value):
            raise ValueError(f"{key} is {raw[key]!r}; only {value!r} is implemented")

    known = {f.name: raw[f.name] for f in fields(Config) if f.name != "extra" and raw.get(f.name) is not None}
    known["rope_theta"], known["rope_scaling"] = rotary_settings(raw)
    for key, value in known.items():
        kind = Config.__annotations__[key]
        if kind in NUMBERS and (type(value) is not kind or not (kind is bool or 0 < value < math.inf)):
            raise ValueError(f"{key} is {value!r}; expected {NUMBERS[kind]}")
    heads, size = known.get("num_attention_heads"), known.get("hidden_size")
    if raw["model_type"] == "llama" and heads:  # the Qwen families name both of these
        known.setdefault("num_key_value_heads", heads)
    if raw["model_type"] != "qwen3" and heads and size and "head_dim" not in known:
        if size % heads:
            raise ValueError(f"hidden_size is {size}, not a multiple of num_attention_heads, {heads}")
        known["head_dim"] = size // heads
    for f in fields(Config):
        if f.name not in known and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"the key {f.name} is missing")
    if heads % known["num_key_value_heads"]:
        raise ValueError(
            f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, {known['num_key_value_heads']}"
        )
    if known["head_dim"] % 2:
        raise ValueError(f"head_dim is {known['head_dim']}; the rotary embedding turns pairs, an even number")
    if raw.get("layer_types") not in (None, ["full_attention"] * known["num_hidden_layers"]):
        raise ValueError(f"layer_types is {raw['layer_types']!r}; only 'full_attention' is implemented")
    return Config(**known, extra={key: value for key, value in raw.items() if key not in known})


def config_json(config: Config) -> dict:
    """config.json's content, the rotary settings in the spelling of transformers 4 and of transformers 5."""
    own = asdict(config)
    rope_parameters = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    return own.pop("extra") | own | {"rope_parameters": rope_parameters}


def rotary_settings(raw: dict) -> tuple[float, dict | None]:
    """(rope_theta, rope_scaling) from either spelling; raises ValueError for a type that is not implemented."""
    merged = {}
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(key), dict | None):
            raise ValueError(f"{key} is {raw[key]!r}; expected an object")
    for source in (raw.get("rope_parameters"), raw.get("rope_scaling"), {"rope_theta": raw.get("rope_theta")}):
        for key, value in (source or {}).items():
            key = "rope_type" if key == "type" else key
            if value is not None and merged.setdefault(key, value) != value:
                raise ValueError(f"{key} is given twice, as {merged[key]!r} and as {value!r}")
    scaling = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0} | merged
    rope_type, theta, part = (scaling.pop(key) for key in ("rope_type", "rope_theta", "partial_rotary_factor"))
    expected = {"default": (), "llama3": LLAMA3_ROPE_KEYS}.get(str(rope_type))
    if expected is None or part != 1.0 or set(scaling) != set(expected):
        raise ValueError(
            f"the rotary settings are {merged!r}; implemented are rope_type 'default' with rope_theta alone, "
            f"and 'llama3' with {', '.join(LLAMA3_ROPE_KEYS)}"
        )
    if not all(isinstance(number, int | float) and 0 < number < math.inf for number in (theta, *scaling.values())):
        raise ValueError(f"the rotary settings are {merged!r}; expected positive numbers")
    if scaling and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise ValueError(f"the rotary settings are {merged!r}; expected low_freq_factor < high_freq_factor")
    return float(theta), {"rope_type": rope_type, **scaling} if scaling else None


# ---- files


def find_checkpoint(folder_or_hub_id: str | Path) -> Path:
    """The folder itself, or the hub's repository of that name in huggingface_hub's cache: downloaded once, a broken
    download continued, read without a network once it is there.

    Raises FileNotFoundError for no such folder or repository, ValueError for weights in another format, PermissionError
    for a gated repository, and ConnectionError for a download that fails.
    """
    folder, name = Path(os.path.expanduser(folder_or_hub_id)), str(folder_or_hub_id)
    if (folder / "metrics.jsonl").is_file() and (folder / "checkpoint").is_dir():
        raise FileNotFoundError(f"{folder} is a run, not a checkpoint; did you mean {folder / 'checkpoint'}?")
    if folder.is_file():
        cure = "; take the original repository, or load it with transformers (gguf_file=) and save_pretrained(FOLDER)"
        cure *= folder.suffix == ".gguf"
        raise ValueError(f"{name} is a file; expected a folder with config.json and *.safetensors{cure}")
    if folder.is_dir():
        if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"{folder} has its weights in pytorch_model*.bin, which are pickled and could run any code; they are "
                "never read. Load the model with transformers and call save_pretrained(FOLDER): it writes safetensors"
            )
        return folder
    if folder == data.EMBEDDED:
        raise FileNotFoundError(f"{folder}: the embedded model is not there; `python -m docs.tiny` makes it again")
    if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise FileNotFoundError(f"{name}: no such folder; expected one with config.json and *.safetensors, or a hub id")
    if os.path.expanduser("~") == "~" and not os.environ.keys() & {"HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"}:
        raise FileNotFoundError(f"{name}: no home folder is known for downloads; set HOME or HF_HOME")
    from huggingface_hub import errors, snapshot_download  # only here: a folder needs no hub

    try:
        return Path(snapshot_download(name, allow_patterns=READ, ignore_patterns=NOT_READ))
    except errors.GatedRepoError:
        raise PermissionError(
            f"{name}: a gated model of the Hugging Face hub; accept its terms on the model's page, then log in "
            "(hf auth login) or set HF_TOKEN to a token of yours"
        ) from None
    except (errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{name}: no such folder, and not found on the Hugging Face hub ({in_short(error)}); expected a "
            "folder with config.json and *.safetensors, or a hub id like HuggingFaceTB/SmolLM2-135M-Instruct (of a "
            "private one, log in: hf auth login)"
        ) from None
    except Exception as error:  # the network's errors come from several libraries
        raise ConnectionError(
            f"{name}: could not be downloaded from the Hugging Face hub ({type(error).__name__}: "
            f"{in_short(error)}); what has come is kept, and the same command continues from there"
        ) from None


def in_short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def read_safetensors(folder: Path, dtype: torch.dtype, device) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or without it of the files that model.safetensors.index.json lists, in `dtype`.

    As transformers does: where both are there, the index is older.
    """
    single, index, places = folder / "model.safetensors", folder / INDEX, {}
    if index.exists() and not single.exists():
        try:
            places = {name: folder / file for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index}: expected JSON with a weight_map from tensors to files") from None
    elif index.exists():
        warnings.warn(f"{folder}: {single.name} is read, and not what {INDEX} lists", stacklevel=1)
    if (folder / "adapter_config.json").is_file():
        warnings.warn(
            f"{folder}: its adapter is not read; give it with --adapter, and its base with --model", stacklevel=1
        )
    tensors = {}
    for path in sorted(set(places.values())) or [single]:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (weights are read from safetensors only, never unpickled)")
        found = read_file(path, dtype, device)
        if wrong := [name for name in found if places.get(name, path) != path]:
            raise ValueError(f"{path}: holds {wrong[0]}, which {INDEX} says is in {places[wrong[0]].name}")
        tensors |= found
    # Old Llama files hold a rotary buffer, which the decoder computes.
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def read_file(path: Path, dtype: torch.dtype, device) -> dict[str, Tensor]:
    """The tensors of one safetensors file, in `dtype`. Raises ValueError or OSError that names it."""
    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                tensor = file.get_tensor(name)
                if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                    raise ValueError(f"{path}: {name} is {tensor.dtype}, of a quantised model; expected its base")
                tensors[name] = tensor.to(device, dtype, copy=True)  # not the file's own pages: it may be replaced
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from None
    return tensors


def digest(parameters: Iterable[Tensor], *facts) -> str:
    """SHA-256 of weights, and of facts beside them."""
    sha = hashlib.sha256(repr(facts).encode())
    for parameter in parameters:
        sha.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """The file, readable by whom the umask lets read it (the library makes it the user's alone). Raises OSError."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # its way to say that a folder is read-only, or the disk full
        raise OSError(f"{path}: {error}") from None
    os.umask(umask := os.umask(0))  # it can only be read by setting it
    path.chmod(0o666 & ~umask)


# ---- what the command line names


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA, else MPS, else the CPU. Raises ValueError where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError("expected cpu, cuda, cuda:1 or mps")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {name!r}: {str(error).splitlines()[0]}") from None


def check_context(model: Decoder, tokenizer: Tokenizer, questions: list[str], max_new_tokens: int) -> int:
    """The tokens of the longest prompt. Raises ValueError that names the problems whose prompt and completion might not
    fit into the model's context. Warns of questions that hold the text of a special token, which is read as one."""
    prompts = [tokenizer.encode_prompt(question) for question in ["1", *questions]]
    usual, *special = [sum(token in tokenizer.special_ids for token in prompt) for prompt in prompts]
    if marked := [question for question, n in zip(questions, special, strict=True) if n != usual]:
        warnings.warn(
            f"{len(marked):,} of {len(questions):,} questions hold the text of a special token; the model reads it as "
            f"that token: {marked[0][:80]!r}",
            stacklevel=1,
        )
    lengths = [len(prompt) for prompt in prompts[1:]]
    context = model.config.max_position_embeddings
    long = [i for i, length in enumerate(lengths) if length + max_new_tokens > context]
    if long:
        some = "; ".join(f"{questions[i][:60]!r}… ({lengths[i]:,} tokens)" for i in long[:3])
        raise ValueError(
            f"the prompt and --max-new-tokens {max_new_tokens} exceed the model's {context:,} tokens "
            f"(max_position_embeddings) in {len(long):,} of {len(questions):,} problems: {some}"
            f"{'; …' * (len(long) > 3)}. Lower the flag, take these problems out, or take a model with a longer context"
        )
    return max(lengths)
