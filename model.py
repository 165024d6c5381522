"""The decoder: Llama (2, 3, SmolLM2, TinyLlama), Qwen2/Qwen2.5 and Qwen3, by hand, with a cache and layer skipping.

Read it downwards from `Decoder.forward` and `hidden`: the decoder, a block, attention, the two caches. Names of
parameters and of configuration keys are Hugging Face's, so a checkpoint needs no mapping. Definitions of the method: D1
(a layer is a whole `Block`) and D3 (a skipped block is the identity, or its bypass). What exists for skipping carries
`# SKIP`, here and everywhere: a marked statement goes with its body, and without them all this is a vanilla trainer.

Departures from transformers: no dropout; no attention mask argument (a row is padded on the right, where causal
attention never looks, or on the left in a cache that knows by how much); norms and rotary tables are computed in
float32 *or better*, so that a float64 model is float64 throughout.

    B batch rows   T new tokens   S key columns   C hidden_size   V vocab_size   L num_hidden_layers
    H num_attention_heads   K num_key_value_heads   D head_dim
"""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ALL_AT_ONCE = 2**23  # the most attention scores that are ever held


@dataclass
class Config:
    """What the decoder reads of config.json, under its own keys; `extra` keeps the others for `save_pretrained`."""

    model_type: str  # llama, qwen2 or qwen3
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int  # tokens of prompt and completion at most
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3's frequency scaling; None: plain rotary embedding
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    extra: dict = field(default_factory=dict)


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
        self.gradient_checkpointing = False  # True: blocks are recomputed in the backward pass, for less memory
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

    def forward(self, tokens: Tensor, cache: "KVCache | PromptCache | None" = None, skip=None) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V), of the token that follows each.  cache, skip: as in `hidden`."""
        return self.lm_head(self.hidden(tokens, cache, skip))

    def hidden(self, tokens: Tensor, cache: "KVCache | PromptCache | None" = None, skip=None) -> Tensor:
        """tokens (B, T) int64 -> the last hidden states (B, T, C), which `lm_head` turns into logits.

        cache: the tokens before; the new ones are appended to it, and its length grows by T.  Without a cache every row
            starts at position 0, and shorter rows are padded on the right with anything.
        skip: L bools, True = the block is skipped (D3): it is the identity, or adds what `bypass` makes of its
            input.  None skips nothing.
        Raises ValueError for a mask of another length, or other than the cache's.
        """
        T, L = tokens.shape[1], self.config.num_hidden_layers
        skip = (False,) * L if skip is None else tuple(skip)  # SKIP
        if len(skip) != L:  # SKIP
            raise ValueError(f"skip has {len(skip)} entries; the model has {L} layers")  # SKIP
        if cache is not None and cache.skip != skip:  # SKIP
            raise ValueError(f"the cache was made for the skip mask {cache.skip}; forward was given {skip}")  # SKIP

        if cache is not None:
            cache.reserve(T)
        x = self.model.embed_tokens(tokens)  # (B, T, C)
        positions, bias = positions_and_bias(T, cache, x)
        rotary = rotary_tables(self.config, positions, x.dtype)
        for layer, block in enumerate(self.model.layers):
            if skip[layer]:  # SKIP
                if self.bypass is not None:  # SKIP
                    x = x + self.bypass(layer, block.input_layernorm(x), positions)  # SKIP
                continue  # SKIP
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotary, bias, cache, layer, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rotary, bias, cache, layer)
        if cache is not None and cache.at is None:
            cache.length += T
        return self.model.norm(x)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, dtype=torch.float32, device="cpu") -> "Decoder":
        """Loads config.json and *.safetensors, strictly: every tensor is used and none is missing.

        Raises ValueError or OSError that names the file and the key or tensor at fault.
        """
        from support.pretrained import load  # late, for support/ imports this file

        return load(folder_or_hub_id, dtype, device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `from_pretrained`, transformers and vLLM load."""
        from support.pretrained import save

        save(self, folder)


def positions_and_bias(T: int, cache: "KVCache | PromptCache | None", like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The positions of T new tokens in their rows, (B or 1, T), and `attend`'s bias, in the dtype of `like`."""
    device = like.device
    start = cache.length if cache is not None else 0
    columns = torch.arange(cache.columns if start else T, device=device)  # (S,)
    counted = cache is None or cache.at is None
    new = (torch.arange(start, start + T, device=device) if counted else cache.at)[None]  # (1, T)
    padding = cache.padding[:, None] if cache is not None and cache.padding is not None else None  # (B, 1)
    if padding is None and start == 0:
        return new, None
    visible = columns <= new[:, :, None]  # (1, T, S)
    if padding is not None:
        # Unused columns see each other, since a softmax over nothing is NaN; nothing that counts looks at them.
        visible = visible & ((columns >= padding[:, :, None]) | (new < padding)[:, :, None])
        new = (new - padding).clamp(min=0)
    bias = torch.zeros(visible.shape, dtype=like.dtype, device=device).masked_fill_(~visible, float("-inf"))
    return new, bias[:, None]


class Block(nn.Module):
    """One layer of D1: attention and MLP, each with its norm before and its residual around."""

    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary, bias: Tensor | None, cache, layer: int) -> Tensor:
        """x (B, T, C) -> (B, T, C).  rotary: `rotary_tables`.  bias: as in `attend`.  cache, layer: where keys and
        values of the tokens before are found, if any are."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, bias, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023), rotary positions; Qwen2's biases, Qwen3's norms of q and k."""

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

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor | None, cache, layer: int) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, K, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), *rotary), rotate(k.transpose(1, 2), *rotary)  # (B, H or K, T, D)
        if cache is not None:
            k, v = cache.update(layer, k, v)  # (B, K, S, D)
        y = attend(q, k, v, bias)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Each query's mean of the values, weighted by the softmax of its scores: q (B, H, T, D) over k and v (B, K, S, D)
    -> (B, H, T, D).

    bias: (B or 1, 1, T, S), 0 where a query sees a column and -inf where not; None: causal attention, S = T.
    """
    (B, H, T, D), (_, K, S, _) = q.shape, k.shape
    if bias is None or B * H * T * S > ALL_AT_ONCE:  # never holds all scores
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=True)
    # Two products. The H/K query heads that share a key head stand as so many times T queries.
    scores = (q * D**-0.5).reshape(B * K, -1, D) @ k.reshape(B * K, S, D).transpose(1, 2)  # (B·K, H/K·T, S)
    weights = F.softmax(scores.view(B, K, -1, T, S).add_(bias[:, :, None]), dim=-1)
    return (weights.view(B * K, -1, S) @ v.reshape(B * K, S, D)).view(B, H, T, D)


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


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


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


class KVCache:
    """Keys and values of the tokens seen so far, for decoding: `Decoder.hidden` writes into it and advances it.

    Rows are padded on the left, so that all end at column `length`: row b starts with padding[b] unused columns.
    Skipped layers have no storage.  A cache belongs to one skip mask, or to two: `switch` is where one ends.
    Columns are allocated BLOCK at a time, and attention goes over all of them, hidden ones too: a product with a slice
    would copy it first.  After `hold` a step always does the same with the same memory, so that it can be captured.

    batch_size: rows; max_length: columns at most; skip: as in `Decoder.hidden`; padding: (B,) int64, None for none.
    """

    BLOCK = 64

    def __init__(self, model: Decoder, batch_size: int, max_length: int, skip=None, padding: Tensor | None = None):
        config = model.config
        self.skip = tuple(skip) if skip is not None else (False,) * config.num_hidden_layers  # SKIP
        self.padding = padding.clone() if padding is not None else None  # keep_rows writes to it
        self.length = self.columns = 0  # written, and allocated
        self.at: Tensor | None = None  # after `hold`, (1,): the next token's column, which the caller advances
        self.max_length, self.device = max_length, model.device
        empty = torch.empty(
            (2, batch_size, config.num_key_value_heads, 0, config.head_dim), dtype=model.dtype, device=model.device
        )
        self.layers = [tuple(empty) for _ in range(config.num_hidden_layers)]
        self.switch(self.skip)  # SKIP

    def reserve(self, T: int) -> None:
        """Makes room for T more tokens. ValueError if that is beyond max_length."""
        end = self.length + T
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens a row; {end} were asked for")
        if end > self.columns:
            self.columns = min(self.max_length, -(-end // self.BLOCK) * self.BLOCK)
            self._map(lambda stored: F.pad(stored, (0, 0, 0, self.columns - stored.shape[2])))

    def hold(self) -> None:
        """Allocates all columns; from here on a token goes to the column that `at` holds, and `length` stays."""
        if self.at is None:
            self.reserve(self.max_length - self.length)
            self.at = torch.tensor([self.length], device=self.device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new (B, K, T, D) behind the old ones and returns all of the layer's, (B, K, S, D)."""
        keys, values = self.layers[layer]
        if self.at is not None:
            return keys.index_copy_(2, self.at, k), values.index_copy_(2, self.at, v)
        keys[:, :, self.length : self.length + k.shape[2]] = k
        values[:, :, self.length : self.length + k.shape[2]] = v
        return (keys, values) if self.length else (k, v)

    def switch(self, skip) -> None:  # SKIP
        """What follows is read under this mask; it attends to what its layers have stored, whoever has read that."""
        self.skip = tuple(skip)
        self.layers = [None if skipped else pair for pair, skipped in zip(self.layers, self.skip, strict=True)]

    def copy_rows(self, rows: Tensor) -> None:
        """Row i becomes a copy of row rows[i]: a prompt is read once and serves its whole group."""
        self._map(lambda stored: stored.index_select(0, rows), padding=True)

    def keep_rows(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, for i < len(rows); the others leave.

        Copies only the rows that change place, in place: a row may come from behind the kept ones
        (rows[i] >= len(rows)) or stay (rows[i] = i), which is what `rollout.survivors` gives.
        """
        # where another row comes to stand
        place = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        row, place = rows[place].to(self.device), place.to(self.device)

        def move(stored: Tensor) -> Tensor:
            stored[place] = stored[row]
            return stored[: len(rows)]

        self._map(move, padding=True)

    def _map(self, change, padding: bool = False) -> None:
        self.layers = [None if layer is None else tuple(map(change, layer)) for layer in self.layers]
        if padding and self.padding is not None:
            self.padding = change(self.padding)


class PromptCache:
    """Keys and values of prompts, for a pass over completions of them through which gradients flow back into both.

    First the prompts are read with it, one a row, then completions with what `followed_by` gives.  Unlike a `KVCache`,
    which is written in place, `update` gives the same keys and values when a block is recomputed in the backward pass
    (gradient checkpointing): it depends on the arguments, and on what the prompts left behind.
    skip, padding: as in `KVCache`.
    """

    def __init__(self, model: Decoder, skip=None, padding: Tensor | None = None):
        self.skip = tuple(skip) if skip is not None else (False,) * model.config.num_hidden_layers  # SKIP
        self.padding = padding
        self.length = self.columns = 0
        self.at = None  # there is no `hold`
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows = None  # the prompt of each completion

    def followed_by(self, rows: Tensor, skip=None) -> "PromptCache":
        """The cache of completions of which number i follows prompt rows[i], read under `skip`, None for the same."""
        follower = copy.copy(self)  # the same stored prompts, a length of its own
        follower.rows = rows
        follower.skip = self.skip if skip is None else tuple(skip)  # SKIP
        follower.padding = self.padding[rows] if self.padding is not None else None
        return follower

    def reserve(self, T: int) -> None:
        self.columns = self.length + T

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that a row attends to, (B, K, S, D): of the prompts themselves, or of each completion's
        prompt and the new ones behind."""
        if self.rows is None:
            self.layers[layer] = k, v
            return k, v
        keys, values = (stored.index_select(0, self.rows) for stored in self.layers[layer])
        return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
