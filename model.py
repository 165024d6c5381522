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

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SCORES = 2**23  # scores of attention up to which they are computed all at once


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
        config = model.config
        self.skip = tuple(skip) if skip is not None else (False,) * config.num_hidden_layers  # SKIP
        self.padding = padding.clone() if padding is not None else None  # keep_rows writes to it
        self.length = self.columns = 0  # written, and allocated
        self.max_length = max_length
        shape = (batch_size, config.num_key_value_heads, 0, config.head_dim)
        self.layers = [
            None if skipped else tuple(torch.empty(shape, dtype=model.dtype, device=model.device) for _ in "kv")  # SKIP
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
        self.bypass = None  # SKIP: or a nested.Bypass
        self.tie_weights()
        for name, parameter in self.named_parameters():
            if not name.endswith("norm.weight"):
                nn.init.normal_(parameter, std=0.02)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of every activation."""
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    def compile_blocks(self, backend="inductor") -> None:
        """torch.compile, block by block: a skip mask chooses among what is compiled, so a new one compiles nothing.

        The first calls take long. ValueError where nothing can be compiled, as on a CPU without a C++ compiler.
        """
        try:
            torch.compile(lambda x: x + 1, backend=backend)(self.model.norm.weight.detach())
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

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, dtype=torch.float32, device="cpu") -> "Decoder":
        """Loads config.json and *.safetensors, strictly: every tensor is used and none is missing.

        Raises ValueError or OSError that names the file and the key or tensor at fault.
        """
        from support.pretrained import load  # the one import of an upper floor

        return load(folder_or_hub_id, dtype, device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `from_pretrained`, transformers and vLLM load."""
        from support.pretrained import save

        save(self, folder)
