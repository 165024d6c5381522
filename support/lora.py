"""LoRA: the linear layers of each block learn a change of low rank; all other weights are frozen.

    E12  y = W x + (α/R) B A x        A (R, in) and B (out, R) learn, W is frozen        Hu et al., 2021

AdamW then keeps 12 bytes for each weight of A and B, and none for those of W, of which no gradient is computed either.
B begins at 0, and so the model begins as it is. Names and files are those of PEFT, Hugging Face's library, which loads
what `save` writes.

    R rank
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from model import Decoder
from support.fast import with_replaced
from support.pretrained import digest, read_file, write_safetensors

SCALE = 2.0  # α/R of new adapters: α = 2R, as is common
PREFIX = "base_model.model."  # of PEFT's names
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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


def add(model: Decoder, rank: int, scale: float = SCALE, seed: int = 0) -> None:
    """Freezes the model and gives the linear layers of its blocks adapters, which change nothing yet."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for block in model.model.layers:
        for module in (block.self_attn, block.mlp):
            for name in LAYERS:
                if hasattr(module, name):
                    setattr(module, name, AdaptedLinear(getattr(module, name), rank, scale, generator))


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
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    config |= {"r": rank, "lora_alpha": scale * rank, "target_modules": LAYERS, "lora_dropout": 0.0, "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    write_safetensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> tuple[int, float]:
    """R and α/R of adapters that `save` or PEFT wrote. ValueError or FileNotFoundError that says what is wrong."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        inside = folder / "adapter"
        hint = f"; did you mean {inside}?" if inside.is_dir() else ""
        raise FileNotFoundError(f"{folder}: no adapter ({path.name} is not there){hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, layers = (config[key] for key in ("r", "lora_alpha", "target_modules"))
        if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
            raise ValueError(f"r is {rank!r}, lora_alpha is {alpha!r}; expected a positive whole number, and a number")
        if not isinstance(layers, list) or sorted(layers) != sorted(LAYERS):
            raise ValueError(f"target_modules is {layers!r}; implemented are {', '.join(LAYERS)}, all of them")
        known = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}
        known |= dict.fromkeys(("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"))
        for key, value in known.items():
            if config.get(key, value) != value and (config[key] or value):
                raise ValueError(f"{key} is {config[key]!r}; only {value!r} is implemented")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not an adapter of this model ({error})") from None
    return rank, alpha / rank


def rank_of(adapter: Path, model: str, rank: int) -> int:
    """R of --adapter. ValueError where it is not --lora-rank's, if that was given, or where --model has it already."""
    found, _ = read_config(adapter)
    if model and Path(model).resolve() in adapter.resolve().parents:
        raise ValueError(f"--adapter {adapter} is merged into --model {model} already; expected its base there")
    if rank not in (0, found):
        raise ValueError(f"--lora-rank is {rank}, but {adapter} has rank {found}; leave the flag out")
    return found


def load(model: Decoder, folder: Path) -> None:
    """Gives the model the adapters in a folder. Raises ValueError or OSError that names the file at fault."""
    add(model, *read_config(folder))
    path = folder / "adapter_model.safetensors"
    tensors = read_file(path, model.dtype, model.device)
    ours = {PREFIX + name: p for name, p in model.named_parameters() if p.requires_grad}
    if wrong := [
        n
        for n in ours.keys() | tensors.keys()
        if n not in ours or n not in tensors or ours[n].shape != tensors[n].shape
    ]:
        raise ValueError(f"{path}: not an adapter of this model: {min(wrong)} is missing, too many or of another shape")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(tensors[name])


def fingerprint(model: Decoder) -> str:
    """A digest of all that is frozen: adapters are worth nothing on another model than their own."""
    return digest((p for p in model.parameters() if not p.requires_grad), model.config)
