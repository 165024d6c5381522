"""The decoder: Llama (2, 3, SmolLM2, TinyLlama), Qwen2/Qwen2.5 and Qwen3, by hand, with a cache and layer skipping.

Read it downwards from `Decoder.forward` and `hidden`: the decoder, a block, attention. Names of parameters and of
configuration keys are Hugging Face's, so a checkpoint needs no mapping. Definitions of the method: D1 (a layer is a
whole `Block`) and D3 (a skipped block is the identity, or its bypass). What exists for skipping carries `# SKIP`, here
and everywhere: a marked statement goes with its body, and without them all this is a vanilla trainer.

Departures from transformers: no dropout; no attention mask argument (a row is padded on the right, where causal
attention never looks, or on the left in a cache that knows by how much); norms and rotary tables are computed in
float32 *or better*, so that a float64 model is float64 throughout.

    B batch rows   T new tokens   S key columns   C hidden_size   V vocab_size   L num_hidden_layers
    H num_attention_heads   K num_key_value_heads   D head_dim
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cache import CompletionCache, KVCache, PromptCache

Cache = PromptCache | CompletionCache | KVCache
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

    def forward(self, tokens: Tensor, cache: Cache | None = None, skip=None, bypass=None) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V), of the token that follows each.  cache, skip, bypass: as in
        `hidden`."""
        return self.lm_head(self.hidden(tokens, cache, skip, bypass))

    def hidden(self, tokens: Tensor, cache: Cache | None = None, skip=None, bypass=None) -> Tensor:
        """tokens (B, T) int64 -> the last hidden states (B, T, C), which `lm_head` turns into logits.

        cache: the tokens before; the new ones are appended to it, and its length grows by T.  Without a cache every row
            starts at position 0, and shorter rows are padded on the right with anything.
        skip: L bools, True = the block is skipped (D3); None skips nothing.
        bypass: what a skipped block adds to its input (a `skip.Bypass`); None: nothing, it is the identity.
        Raises ValueError for a mask of another length, or other than the cache's.
        """
        skip = self.skip_bools(skip)  # SKIP
        if cache is not None and self.skip_bools(cache.skip) != skip:  # SKIP
            raise ValueError(f"the cache was made for the skip mask {cache.skip}; forward was given {skip}")  # SKIP

        if cache is not None:
            cache.reserve(tokens.shape[1])
        x = self.model.embed_tokens(tokens)  # (B, T, C)
        positions, bias = positions_and_bias(tokens.shape[1], cache, x)
        rotary = rotary_tables(self.config, positions, x.dtype)
        for layer, block in enumerate(self.model.layers):
            if skip[layer]:  # SKIP
                if bypass is not None:  # SKIP
                    x = x + bypass(layer, block.input_layernorm(x), positions)  # SKIP
                continue  # SKIP
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotary, bias, cache, layer, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rotary, bias, cache, layer)
        if cache is not None and cache.next_column is None:
            cache.length += tokens.shape[1]
        return self.model.norm(x)

    def skip_bools(self, skip) -> tuple[bool, ...]:  # SKIP
        """L bools of a skip mask that may be None, which skips nothing."""
        L = self.config.num_hidden_layers
        if skip is not None and len(skip) != L:
            raise ValueError(f"skip has {len(skip)} entries; the model has {L} layers")
        return (False,) * L if skip is None else tuple(skip)

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


def positions_and_bias(T: int, cache: Cache | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The positions of T new tokens in their rows, (B or 1, T), and `attend`'s bias, in the dtype of `like`."""
    start = cache.length if cache is not None else 0
    next_column = cache.next_column if cache is not None else None
    new = torch.arange(start, start + T, device=like.device) if next_column is None else next_column  # their columns
    new = new[None]  # (1, T)
    padding = cache.padding[:, None] if cache is not None and cache.padding is not None else None  # (B, 1)
    if padding is None and start == 0:
        return new, None
    columns = torch.arange(cache.columns, device=like.device)  # (S,)
    visible = columns <= new[:, :, None]  # (1, T, S)
    if padding is not None:
        # Unused columns see each other, since a softmax over nothing is NaN; nothing that counts looks at them.
        visible = visible & ((columns >= padding[:, :, None]) | (new < padding)[:, :, None])
        new = (new - padding).clamp(min=0)
    bias = torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, float("-inf"))
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
