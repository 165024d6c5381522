"""The decoder: Llama (2, 3, SmolLM2, TinyLlama), Qwen2/Qwen2.5 and Qwen3, by hand, with a cache and layer skipping.

Reading order: `Decoder.hidden` first, then `Block`, `Attention`, `KVCache`; loading and saving are at the end. Names
of parameters and of configuration keys are Hugging Face's, so a checkpoint needs no mapping. Definitions of the method:
D1 (a layer is a whole `Block`) and D3 (a skipped block is the identity, or its `Bypass`). Lines that exist for skipping
carry `# SKIP`.

Departures from transformers: no dropout; no attention mask argument (a row is padded on the right, where causal
attention never looks, or on the left in a `KVCache` that knows by how much); norms and rotary tables are computed in
float32 *or better*, so that a float64 model is float64 throughout.

    B batch rows   T new tokens   S tokens attended to   C hidden_size   V vocab_size   L num_hidden_layers
    H num_attention_heads   K num_key_value_heads   D head_dim
"""

import json
import math
import os
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ONLY_IMPLEMENTED = {  # keys of config.json of which the code knows one value
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
RIDGE = 0.01  # of the mean square of what a bypass is fitted on
SCORES = 2**23  # scores of attention up to which they are computed all at once
INDEX = "model.safetensors.index.json"
NUMBERS = {int: "a positive whole number", float: "a positive number", bool: "true or false"}
LLAMA3_ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass
class Config:
    """What the decoder reads of config.json, under its own keys; `extra` keeps the others for `save_pretrained`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3's frequency scaling; None: plain rotary embedding
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict) -> "Config":
        """Reads config.json's content; raises ValueError that names the key for what is missing or not implemented."""
        if not isinstance(raw, dict):
            raise ValueError(f"expected a JSON object, got {str(raw)[:80]}")
        if raw.get("model_type") not in tuple(ARCHITECTURES):  # a tuple: the value may be a list
            raise ValueError(f"model_type is {raw.get('model_type')!r}; implemented are {', '.join(ARCHITECTURES)}")
        for key, value in ONLY_IMPLEMENTED.items():
            if raw.get(key, value) not in (None, value):
                raise ValueError(f"{key} is {raw[key]!r}; only {value!r} is implemented")

        known = {f.name: raw[f.name] for f in fields(cls) if f.name != "extra" and raw.get(f.name) is not None}
        known["rope_theta"], known["rope_scaling"] = rotary_settings(raw)
        for key, value in known.items():
            kind = cls.__annotations__[key]
            if kind in NUMBERS and (type(value) is not kind or not (kind is bool or 0 < value < math.inf)):
                raise ValueError(f"{key} is {value!r}; expected {NUMBERS[kind]}")
        heads, size = known.get("num_attention_heads"), known.get("hidden_size")
        if raw["model_type"] == "llama" and heads:  # the Qwen families name both of these
            known.setdefault("num_key_value_heads", heads)
        if raw["model_type"] != "qwen3" and heads and size and "head_dim" not in known:
            if size % heads:
                raise ValueError(f"hidden_size is {size}, not a multiple of num_attention_heads, {heads}")
            known["head_dim"] = size // heads
        for f in fields(cls):
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
        return cls(**known, extra={key: value for key, value in raw.items() if key not in known})

    def to_dict(self) -> dict:
        """config.json's content, the rotary settings in the spelling of transformers 4 and of transformers 5."""
        own = asdict(self)
        rope_parameters = {"rope_type": "default", **(self.rope_scaling or {}), "rope_theta": self.rope_theta}
        return own.pop("extra") | own | {"rope_parameters": rope_parameters}


def rotary_settings(raw: dict) -> tuple[float, dict | None]:
    """(rope_theta, rope_scaling) from either spelling; raises ValueError for a type that is not implemented."""
    merged = {}
    for place in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(place), dict | None):
            raise ValueError(f"{place} is {raw[place]!r}; expected an object")
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


def rotary_tables(config: Config, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles (Su et al., 2021), each (B, 1, T, D), for positions (B, T)."""
    exact = torch.promote_types(dtype, torch.float32)
    exponent = torch.arange(0, config.head_dim, 2, dtype=exact, device=positions.device) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent  # (D/2,)
    if config.rope_scaling:  # Llama 3.1: long waves are stretched by `factor`, short ones kept, a ramp between
        scaling = config.rope_scaling
        waves_in_context = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((waves_in_context - low) / (high - low)).clamp(0, 1)
        frequency = (1 - kept) * frequency / scaling["factor"] + kept * frequency
    angle = positions[:, None, :, None].to(exact) * frequency  # (B, 1, T, D/2)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of x, (B, heads, T, D), by its angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Grouped-query attention: q (B, H, T, D) over k and v (B, K, S, D) -> (B, H, T, D).

    bias: (B or 1, 1, T, S), 0 where a query sees a column and -inf where not; None: causal attention, S = T.
    """
    (B, H, T, D), (_, K, S, _) = q.shape, k.shape
    if bias is None or B * H * T * S > SCORES:  # never holds all scores
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=True)
    # Two products. The H/K query heads that share a key head stand as so many times T queries.
    scores = (q * D**-0.5).reshape(B * K, -1, D) @ k.reshape(B * K, S, D).transpose(1, 2)  # (B·K, H/K·T, S)
    weights = F.softmax(scores.view(B, K, -1, T, S).add_(bias[:, :, None]), dim=-1)
    return (weights.view(B * K, -1, S) @ v.reshape(B * K, S, D)).view(B, H, T, D)


class KVCache:
    """Keys and values of the tokens seen so far; the model's forward writes to it and advances it.

    A row's tokens end at column `length` whatever their number: row b starts with padding[b] unused columns.
    Skipped layers have no storage.  A cache belongs to one skip mask, since prefill and decoding must not mix two.
    Columns are allocated BLOCK at a time and attention goes over all of them, hidden ones too: products of a slice
    would copy it first.

    model: the Decoder (for its sizes, dtype and device); batch_size: rows; max_length: columns at most;
    skip: as in `Decoder.forward`; padding: (B,) int64 or None for none.
    With max_length None nothing is overwritten: each update makes new tensors, and gradients flow through.
    """

    BLOCK = 64

    def __init__(
        self, model: "Decoder", batch_size: int, max_length: int | None, skip=None, padding: Tensor | None = None
    ):
        config, weight = model.config, model.lm_head.weight
        self.skip = tuple(skip) if skip is not None else (False,) * config.num_hidden_layers  # SKIP
        self.padding = padding.clone() if padding is not None else None  # keep_rows writes to it
        self.length = self.columns = 0  # written, and allocated
        self.max_length = max_length
        shape = (batch_size, config.num_key_value_heads, 0, config.head_dim)
        self.layers = [
            None if skipped else (weight.new_empty(shape), weight.new_empty(shape))  # SKIP
            for skipped in self.skip
        ]

    def reserve(self, T: int) -> None:
        """Makes room for T more tokens. ValueError if that is beyond max_length."""
        end = self.length + T
        if self.max_length is None:
            self.columns = end
            return
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens a row; {end} were asked for")
        if end > self.columns:
            self.columns = min(self.max_length, -(-end // self.BLOCK) * self.BLOCK)
            self._map(lambda stored: F.pad(stored, (0, 0, 0, self.columns - stored.shape[2])), rows=False)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new (B, K, T, D) behind the old ones and returns all of the layer's, (B, K, S, D)."""
        keys, values = self.layers[layer]
        if self.max_length is None:
            self.layers[layer] = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
            return self.layers[layer]
        keys[:, :, self.length : self.length + k.shape[2]] = k
        values[:, :, self.length : self.length + k.shape[2]] = v
        return (keys, values) if self.length else (k, v)

    def copy_rows(self, rows: Tensor) -> None:
        """Row i becomes a copy of row rows[i]: a prompt is read once and serves its whole group."""
        self._map(lambda stored: stored.index_select(0, rows))

    def keep_rows(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, for i < len(rows); the others leave.

        Copies only the rows that change place, in place: a row may come from behind the kept ones
        (rows[i] >= len(rows)) or stay (rows[i] = i), which is what `rollout.survivors` gives.
        """
        moved = rows != torch.arange(len(rows), device=rows.device)

        def move(stored: Tensor) -> Tensor:
            stored[: len(rows)][moved] = stored[rows[moved]]
            return stored[: len(rows)]

        self._map(move)

    def _map(self, change, rows: bool = True) -> None:
        self.layers = [None if layer is None else tuple(map(change, layer)) for layer in self.layers]
        if rows and self.padding is not None:
            self.padding = change(self.padding)


def place(T: int, cache: KVCache | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where T new tokens stand in their rows, (B or 1, T), and `attend`'s bias for them, of the dtype of `like`."""
    device = like.device
    start = cache.length if cache is not None else 0
    columns = torch.arange(cache.columns if start else T, device=device)  # (S,)
    new = torch.arange(start, start + T, device=device)[None]  # (1, T)
    padding = cache.padding[:, None] if cache is not None and cache.padding is not None else None  # (B, 1)
    if padding is None and start == 0:
        return new, None
    visible = columns <= new[:, :, None]  # (1, T, S)
    if padding is not None:
        # Unused columns see each other, for a softmax over nothing would be NaN; nothing that counts looks at them.
        visible = visible & ((columns >= padding[:, :, None]) | (new < padding)[:, :, None])
        new = (new - padding).clamp(min=0)
    bias = torch.zeros(visible.shape, dtype=like.dtype, device=device).masked_fill_(~visible, float("-inf"))
    return new, bias[:, None]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich, 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Attention(nn.Module):
    """Queries, keys and values with rotary positions, for `attend`; Qwen2's biases, Qwen3's norms on q and k."""

    def __init__(self, config: Config):
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        qwen2 = config.model_type == "qwen2"  # has biases on q, k, v whatever attention_bias says, and none on o
        self.head_dim = D
        self.q_proj = nn.Linear(C, H * D, bias=config.attention_bias or qwen2)
        self.k_proj = nn.Linear(C, K * D, bias=config.attention_bias or qwen2)
        self.v_proj = nn.Linear(C, K * D, bias=config.attention_bias or qwen2)
        self.o_proj = nn.Linear(H * D, C, bias=config.attention_bias and not qwen2)
        if config.model_type == "qwen3":
            self.q_norm = RMSNorm(D, config.rms_norm_eps)
            self.k_norm = RMSNorm(D, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, K, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q.transpose(1, 2), cos, sin), rotate(k.transpose(1, 2), cos, sin), v  # (B, H or K, T, D)


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer of D1: attention and MLP, each with its norm before and its residual around.

    What comes before and after the cache and `attend` are functions of tensors alone: `Decoder.compile_blocks` and
    `Decoder.checkpoint_blocks` wrap them.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary, bias: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        q, k, v = self.before(x, *rotary)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (B, K, S, D)
        return self.after(x, attend(q, k, v, bias))

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn(self.input_layernorm(x), cos, sin)

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


@dataclass
class Bypass:  # SKIP
    """What skipped blocks add in place of their update: a low-rank matrix times their normalised input, and a vector.

    The first position has a vector alone: the attention of all others comes to rest on it, and its states are unlike
    theirs (Xiao et al., 2023; Sun et al., 2024). Rank R costs 2·R·C multiplications a token, a block about 12·C².
    """

    down: Tensor  # (L, R, C)
    up: Tensor  # (L, C, R)
    bias: Tensor  # (L, 2, C): of the first position, and of all others

    def __call__(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, C) at positions (B or 1, T) -> (B, T, C)."""
        first, others = self.bias[layer]
        update = F.linear(F.linear(x, self.down[layer]), self.up[layer], others)
        return torch.where((positions == 0)[..., None], first, update)


class Decoder(nn.Module):
    """A causal language model. Weights are random (normal, 0.02) until `from_pretrained` or `load_state_dict`."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
            "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
        })  # fmt: skip
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bypass: Bypass | None = None  # SKIP
        self._tie()
        for name, parameter in self.named_parameters():
            if not name.endswith("norm.weight"):
                nn.init.normal_(parameter, std=0.02)

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def compile_blocks(self, backend="inductor") -> None:
        """torch.compile, block by block: a skip mask chooses among what is compiled, so a new one compiles nothing.

        The first calls take long. ValueError where nothing can be compiled, as on a CPU without a C++ compiler.
        """
        try:
            torch.compile(lambda x: x + 1, backend=backend)(self.lm_head.weight[:2, :2].detach())
        except Exception as error:  # whatever the back end of the day raises
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"torch.compile does not work here ({reason}); do without") from None
        torch._dynamo.config.recompile_limit = 32  # one row or many, one token or many, a gradient or none: 16 graphs
        self._wrap_blocks(partial(torch.compile, backend=backend, dynamic=True))

    def checkpoint_blocks(self) -> None:
        """Keeps less of a forward pass: backward computes a block's inner values again, all but attention's."""
        self._wrap_blocks(lambda part: partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False))

    def _wrap_blocks(self, wrap) -> None:
        for block in self.model.layers:
            block.before, block.after = wrap(block.before), wrap(block.after)

    def forward(
        self, tokens: Tensor, cache: KVCache | None = None, skip=None, logits_for: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V), of the token that follows each.

        cache, skip: as in `hidden`.
        logits_for: (B, T) bool; only these positions' logits are computed and returned, (n, V) in row-major order.
        """
        x = self.hidden(tokens, cache, skip)  # (B, T, C)
        return self.lm_head(x if logits_for is None else x[logits_for])

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, skip=None) -> Tensor:
        """tokens (B, T) int64 -> what `lm_head` makes the logits of, (B, T, C).

        cache: what came before; rows are read behind it, and it is advanced by T.  Without a cache every row starts at
            position 0, and shorter rows are padded on the right with anything.
        skip: L bools, True = the block is skipped (D3): it is the identity, or adds what `bypass` makes of its
            input.  None skips nothing.
        """
        T, L = tokens.shape[1], self.config.num_hidden_layers
        skip = (False,) * L if skip is None else tuple(skip)  # SKIP
        if len(skip) != L:  # SKIP
            raise ValueError(f"skip has {len(skip)} entries; the model has {L} layers")
        if cache is not None and cache.skip != skip:  # SKIP
            raise ValueError(f"the cache was made for the skip mask {cache.skip}; forward was given {skip}")
        x = self.model.embed_tokens(tokens)  # (B, T, C)

        if cache is not None:
            cache.reserve(T)
        positions, bias = place(T, cache, x)
        rotary = rotary_tables(self.config, positions, x.dtype)
        for layer, block in enumerate(self.model.layers):
            if skip[layer]:  # SKIP
                if self.bypass is not None:  # SKIP
                    x = x + self.bypass(layer, block.input_layernorm(x), positions)  # SKIP
                continue  # SKIP
            x = block(x, rotary, bias, cache, layer)
        if cache is not None:
            cache.length += T

        return self.model.norm(x)

    @torch.no_grad()
    def fit_bypass(self, tokens: Tensor, mask: Tensor, rank: int) -> "Bypass":  # SKIP
        """The bypass that comes closest to what the blocks add on these rows; rank 0: their mean.

        tokens, mask: (B, T), rows that end early padded on the right. By least squares over all positions but the
        first ones: of all maps of that rank from a block's normalised input to its update, the one with the least error
        (reduced-rank regression; Izenman, 1975), up to a small ridge.
        """
        parts = []

        def fit(block: Block, arguments: tuple, output: Tensor) -> None:
            exact = torch.promote_types(output.dtype, torch.float32)
            update, x = (output - arguments[0]).to(exact), block.input_layernorm(arguments[0]).to(exact)
            first, update, x = update[:, 0].mean(0), update[:, 1:][mask[:, 1:]], x[:, 1:][mask[:, 1:]]  # (C,), (n, C)
            mean, mean_x = update.mean(0), x.mean(0)
            update, x = update - mean, x - mean_x
            gram, cross = x.T @ x, x.T @ update  # (C, C)
            gram.diagonal().add_(RIDGE * gram.diagonal().mean())
            matrix = torch.linalg.solve(gram, cross)  # update ≈ x matrix
            _, vectors = torch.linalg.eigh(cross.T @ matrix)  # of the fitted updates' second moments, ascending
            up = vectors[:, len(gram) - rank :]  # (C, R): where most of the fitted updates lie
            down = (matrix @ up).T
            parts.append((down, up, torch.stack((first, mean - up @ (down @ mean_x)))))

        hooks = [block.register_forward_hook(fit) for block in self.model.layers]
        try:
            self.hidden(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return Bypass(*(torch.stack(part).to(self.lm_head.weight.dtype) for part in zip(*parts, strict=True)))

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, dtype=torch.float32, device="cpu") -> "Decoder":
        """Loads config.json and *.safetensors, strictly: every tensor is used and none is missing.

        Raises FileNotFoundError or ValueError that names the file and the key or tensor at fault.
        """
        folder = find_checkpoint(folder_or_hub_id)
        try:
            config = Config.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except ValueError as error:  # broken JSON is a ValueError too
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        with torch.device("meta"):
            model = cls(config)
        tensors = read_safetensors(folder, dtype, device)
        if config.tie_word_embeddings:  # files hold the head or leave it out
            embedding = tensors.get("model.embed_tokens.weight")
            if embedding is not None and not torch.equal(tensors.setdefault("lm_head.weight", embedding), embedding):
                raise ValueError(
                    f"{folder}: tie_word_embeddings is true, but lm_head.weight differs from the embedding"
                )
        expected = {name: parameter.shape for name, parameter in model.state_dict().items()}
        for complaint, names in (
            ("lacks", expected.keys() - tensors.keys()),
            ("holds tensors that config.json does not account for:", tensors.keys() - expected.keys()),
            (
                "holds a wrong shape for",
                {
                    f"{n}: {list(tensors[n].shape)}, expected {list(expected[n])},"
                    for n in expected.keys() & tensors
                    if expected[n] != tensors[n].shape
                },
            ),
        ):
            if names:
                raise ValueError(
                    f"{folder}: the checkpoint {complaint} {', '.join(sorted(names)[:3])} ({len(names)} in all)"
                )
        model.load_state_dict(tensors, assign=True)
        model._tie()
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `from_pretrained`, transformers and vLLM load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        dtype = str(self.lm_head.weight.dtype).removeprefix("torch.")
        spellings = {"dtype": dtype, "torch_dtype": dtype}  # of transformers 5 and 4
        config = {"architectures": [ARCHITECTURES[self.config.model_type]], **self.config.to_dict(), **spellings}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for path in [folder / INDEX, *folder.glob("model-*-of-*.safetensors")]:  # of an older checkpoint, in shards
            path.unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def packed(model: Decoder, rows: int):
    """Within it, products with the model's matrices take them in oneDNN's own layout, for about `rows` rows at a time.

    For bfloat16 on a CPU, where each product would else bring its matrix into that layout again; elsewhere it does
    nothing. The same numbers, without a gradient; the weights must not change meanwhile, and are held twice.
    """
    weight = model.lm_head.weight
    apt = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)] if apt else []

    def product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")

    for linear in linears:
        matrix = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        linear.forward = partial(product, matrix=matrix, bias=linear.bias)
    # Compiled blocks stand aside: the compiler does not know that layout, and gains less than it does.
    blocks = [vars(block) for block in model.model.layers] if apt else []
    wrapped = [{name: block.pop(name) for name in ("before", "after") if name in block} for block in blocks]
    try:
        yield
    finally:
        for block, parts in zip(blocks, wrapped, strict=True):
            block.update(parts)
        for linear in linears:
            del linear.forward  # the class's own is back


def find_checkpoint(folder_or_hub_id: str | Path) -> Path:
    """The folder itself, or where huggingface_hub keeps the repository of that name: downloaded once, taken up again
    where a download was cut, and read from its cache where there is no network.

    Raises FileNotFoundError where there is no such folder or repository, PermissionError for a gated one, and
    ConnectionError where a download fails.
    """
    folder, name = Path(os.path.expanduser(folder_or_hub_id)), str(folder_or_hub_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import errors, snapshot_download  # only here: a folder needs no hub

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except errors.GatedRepoError:
        raise PermissionError(
            f"{name}: the Hugging Face hub gives it to those alone who accepted its terms; accept them on the model's "
            "page, then log in (hf auth login) or set HF_TOKEN to a token of yours"
        ) from None
    except (errors.RepositoryNotFoundError, errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"{name}: no such folder, and not to be had from the Hugging Face hub ({in_short(error)}); expected a "
            "folder with config.json and *.safetensors, or a hub id like HuggingFaceTB/SmolLM2-135M-Instruct (of a "
            "private one, log in: hf auth login)"
        ) from None
    except Exception as error:  # the network's errors are of several libraries
        raise ConnectionError(
            f"{name}: could not be downloaded from the Hugging Face hub ({type(error).__name__}: "
            f"{in_short(error)}); what has come is kept, and the same command goes on from there"
        ) from None


def in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_safetensors(folder: Path, dtype: torch.dtype, device) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the files that model.safetensors.index.json lists, in `dtype`."""
    paths, index = [folder / "model.safetensors"], folder / INDEX
    if index.exists():
        try:
            paths = sorted(
                {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index}: expected JSON with a weight_map from tensors to files") from None
    tensors = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (weights are read from safetensors only, never unpickled)")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    tensor = file.get_tensor(name)
                    if not tensor.is_floating_point():
                        raise ValueError(
                            f"{path}: {name} is {tensor.dtype}; only floating-point weights are implemented"
                        )
                    tensors[name] = tensor.to(device, dtype)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from None
    # Old Llama files hold a rotary buffer, which is computed here.
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
