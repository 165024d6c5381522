"""LoRA: the linear layers of each block learn a change of low rank; all other weights are frozen.

    E12  y = W x + (α/R) B A x        A (R, in) and B (out, R) learn, W is frozen        Hu et al., 2021

AdamW then keeps 12 bytes for each weight of A and B, and none for those of W, of which no gradient is computed either.
B begins at 0, and so the model begins as it is. Names and files are those of PEFT, Hugging Face's library, which loads
what `save` writes. Of what PEFT writes, all that is E12 is read, on some layers or on all; a configuration that says
anything else is refused by name, for the weights would load and mean another model.

    R rank
"""

import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import Decoder
from support.fast import with_replaced
from support.pretrained import digest, read_file, write_safetensors

SCALE = 2.0  # α/R of new adapters: α = 2R, as is common
PREFIX = "base_model.model."  # of PEFT's names
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of A and B; others of PEFT's (PiSSA, OLoRA) change W as well
READ = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias", "target_modules"),
    "base_model_name_or_path",
}
HARMLESS = {  # keys of adapter_config.json that change no logit; the tensors say which layers have adapters
    *("task_type", "revision", "inference_mode", "peft_version", "auto_mapping", "lora_dropout", "eva_config"),
    *("layers_to_transform", "layers_pattern", "exclude_modules", "megatron_core", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying", "loftq_config"),  # the last is of a start that is refused
}


class AdaptedLinear(nn.Module):
    """A frozen linear layer and its change, E12."""

    def __init__(self, base_layer: nn.Linear, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        n_out, n_in = base_layer.weight.shape
        like = {"device": base_layer.weight.device, "dtype": base_layer.weight.dtype}
        self.base_layer, self.scale = base_layer, scale
        self.lora_A = nn.Linear(n_in, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, n_out, bias=False, **like)
        with torch.no_grad():
            self.lora_A.weight.copy_(torch.empty(rank, n_in).uniform_(-(n_in**-0.5), n_in**-0.5, generator=generator))
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.scale * self.lora_A(x))  # E12

    def merged(self) -> nn.Linear:
        """One layer that does the same, its matrix W + (α/R) B A rounded once; on the CPU, which has room."""
        base, A, B = self.base_layer, self.lora_A.weight, self.lora_B.weight
        exact = torch.promote_types(base.weight.dtype, torch.float32)
        linear = nn.Linear(1, 1, device="meta")
        matrix = base.weight.to(exact) + self.scale * (B.to(exact) @ A.to(exact))
        linear.weight = nn.Parameter(matrix.to("cpu", base.weight.dtype))
        linear.bias = base.bias
        return linear


def linears(model: Decoder) -> dict[str, nn.Module]:
    """The linear layers of the blocks by name, with adapters or without."""
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in LAYERS}


def add(model: Decoder, rank: int, scale: float = SCALE, seed: int = 0, targets: set[str] | None = None) -> None:
    """Freezes the model and gives the linear layers of its blocks adapters, which change nothing yet.

    targets: their names; None: all.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, linear in linears(model).items():
        if targets is None or name in targets:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, AdaptedLinear(linear, rank, scale, generator))


def adapted(model: Decoder) -> list[AdaptedLinear]:
    return [module for module in model.modules() if isinstance(module, AdaptedLinear)]


@torch.no_grad()
def merged(model: Decoder) -> Decoder:
    """The model without adapters and with what they have learned, to be saved; itself if it has none."""
    return with_replaced(model, AdaptedLinear, AdaptedLinear.merged) if adapted(model) else model


def save(model: Decoder, folder: Path, base: str) -> None:
    """Writes the adapters, if there are any, as PEFT does: adapter_config.json and adapter_model.safetensors.

    base: folder or hub id of the frozen model, which the configuration names.  Raises OSError.
    """
    if not (layers := adapted(model)):
        return
    rank, scale = layers[0].lora_A.out_features, layers[0].scale
    names = [name for name, linear in linears(model).items() if linear in layers]
    kinds = [kind for kind in LAYERS if any(name.endswith(kind) for name in names)]
    targets = kinds if set(names) == of_kinds(model, kinds) else names
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    config |= {"r": rank, "lora_alpha": scale * rank, "target_modules": targets, "lora_dropout": 0.0, "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    write_safetensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def of_kinds(model: Decoder, targets: list[str]) -> set[str]:
    """The linear layers that PEFT finds for a list of target_modules: by their name or its end."""
    return {name for name in linears(model) if any(f".{name}".endswith(f".{target}") for target in targets)}


class Adapter(NamedTuple):
    """What a folder of PEFT's holds."""

    rank: int
    scale: float  # α/R
    base: str | None  # folder or hub id of the model that it was trained on
    kinds: list[str] | None  # whole kinds of layers that have adapters; None: the tensors alone say which
    tensors: dict[str, Tensor]  # by PEFT's names

    @property
    def targets(self) -> set[str]:
        """The linear layers that have adapters."""
        return {name.removeprefix(PREFIX).partition(".lora_")[0] for name in self.tensors}


def read(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Adapter:
    """The adapters that `save` or PEFT wrote. ValueError or FileNotFoundError that says what is wrong."""
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not path.is_file():
        inside = folder / "adapter"
        hint = f"; did you mean {inside}?" if inside.is_dir() else ""
        raise FileNotFoundError(f"{folder}: no adapter ({path.name} is not there){hint}")
    if not weights.is_file() and weights.with_suffix(".bin").is_file():
        raise FileNotFoundError(f"{weights}: no such file; load {folder} with PEFT and save_pretrained writes it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, targets = (config[key] for key in ("r", "lora_alpha", "target_modules"))
        if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise ValueError(f"r is {rank!r}, lora_alpha is {alpha!r}; expected a positive whole number, and a number")
        for key, known in {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": STARTS}.items():
            if config.get(key, known[0]) not in known:
                raise ValueError(f"{key} is {config[key]!r}; implemented are {', '.join(map(repr, known))}")
        for key in config.keys() - HARMLESS - READ:
            if config[key]:
                raise ValueError(f"{key} is {config[key]!r}; only plain LoRA is implemented, without it")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not an adapter of this model ({error})") from None
    whole = isinstance(targets, list) and not any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    base = config.get("base_model_name_or_path")
    return Adapter(rank, scale, base, targets if whole else None, read_file(weights, dtype, device))


def check(folder: Path, model: str, rank: int) -> int:
    """R of --adapter. ValueError where it is not --lora-rank's, if that was given, or where --model has it already; a
    warning where it was trained on another model."""
    found = read(folder)
    if Path(model).resolve() in folder.resolve().parents:
        raise ValueError(f"--adapter {folder} is merged into --model {model} already; expected its base there")
    if rank not in (0, found.rank):
        raise ValueError(f"--lora-rank is {rank}, but {folder} has rank {found.rank}; leave the flag out")
    base, here = Path(found.base or model), Path(model)
    # A folder that has moved keeps its name. But each run's is called checkpoint, and hub ids are two models.
    moved = base.name == here.name != "checkpoint" and not base.exists() and (base.is_absolute() or here.is_absolute())
    if base.resolve() != here.resolve() and not moved:
        warnings.warn(f"--adapter {folder} was trained on {base}, and --model is {model}", stacklevel=1)
    return found.rank


def load(model: Decoder, folder: Path) -> None:
    """Gives the model the adapters in a folder. Raises ValueError or OSError that names the file at fault."""
    found = read(folder, model.dtype, model.device)
    wanted = found.targets if found.kinds is None else of_kinds(model, found.kinds)
    add(model, found.rank, found.scale, targets=wanted)
    ours = {PREFIX + name: p for name, p in model.named_parameters() if p.requires_grad}
    if wrong := [
        n
        for n in ours.keys() | found.tensors.keys()
        if n not in ours or n not in found.tensors or ours[n].shape != found.tensors[n].shape
    ]:
        raise ValueError(
            f"{folder / 'adapter_model.safetensors'}: not an adapter of this model: {min(wrong)} is missing, too many "
            f"or of another shape; implemented are adapters on {', '.join(LAYERS)}"
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(found.tensors[name])


def fingerprint(model: Decoder) -> str:
    """A digest of all that is frozen: adapters are worth nothing on another model than their own."""
    return digest((p for p in model.parameters() if not p.requires_grad), model.config)
