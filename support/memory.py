"""What memory a run will need, and whether it is free: reported before loading, instead of by the out-of-memory killer.

    weights     in --dtype; on a CPU matrices in bfloat16 lie there once more while completions are sampled, packed
    AdamW       of weights that learn: moments, 8 bytes, and masters, 4 more in bfloat16 or on several processes
    sampling    keys and values of a batch, and the probabilities of its next tokens
    update      gradients in float32, and what a micro-batch keeps for its backward pass
    saving      AdamW's part twice more, and the merged matrices of adapters, in the memory of the CPU

Sampling and update take turns, so the larger of them counts. On a CPU what an update has freed stays with the process
while it saves.
"""

import os
import re
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from model import ALL_AT_ONCE, Decoder
from support.distributed import single_process, world_size
from support.fast import LOGITS
from support.settings import Settings

OTHERS = 0.4e9  # Python and its libraries, on a CPU
HEAD = 3 * 4 * LOGITS  # at a time, in float32, with their gradient


def needed(model: Decoder, s: Settings, longest: int, device: torch.device) -> dict[str, float]:
    """Bytes of the memory by part; `longest` is the number of tokens of the longest prompt. The weights may be on
    "meta", without a value."""
    c, w = model.config, 2 if s.dtype == "bfloat16" else 4
    size = sum(p.numel() for p in model.parameters())
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    C, L, V = c.hidden_size, c.num_hidden_layers, c.vocab_size
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    rows, length = -(-s.prompts * s.samples // world_size()), longest + s.max_new_tokens

    copied = w < 4 or not single_process()
    packed = 0 if device.type != "cpu" or w == 4 else sum(
        w * m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)
    )  # fmt: skip
    cache = rows * length * 2 * keys * L * w
    probabilities = rows * V * (w + 3 * 4)

    tokens = max(length, min(s.micro_batch_tokens, rows * length))
    states = (9 if w < 4 else 7) * C  # norms keep theirs in float32 as well
    kept = tokens * (states + 3 * queries + 4 * keys + 4 * c.intermediate_size) * w  # of a block, for its backward pass
    scores = min(tokens * length * c.num_attention_heads, ALL_AT_ONCE) * w
    kept = L * tokens * C * w + kept + scores if s.gradient_checkpointing else L * (kept + scores)
    gradients = learns * (4 if w == 4 else 4 + w)
    merged = w * (size - V * C * (2 - c.tie_word_embeddings)) if s.lora_rank else 0  # matrices, once more
    return {
        "weights": size * w + (OTHERS if device.type == "cpu" else 0),
        "AdamW": learns * (8 + 4 * copied) / world_size(),
        "sampling": packed + cache + probabilities,
        "update": gradients + kept + HEAD,
        "saving": merged + 2 * learns * (8 + 4 * copied) / world_size() if device.type == "cpu" else 0,
    }


def peak(parts: dict[str, float]) -> float:
    return parts["weights"] + parts["AdamW"] + max(parts["sampling"], parts["update"]) + parts["saving"]


def free(device: torch.device) -> float | None:
    """Bytes that this process may still take; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    found = []
    with suppress(OSError, AttributeError):
        match = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        found.append(int(match[1]) * 1024)
    with suppress(OSError, ValueError):  # a container's limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.findall(r"^(?:in)?active_file (\d+)", Path("/sys/fs/cgroup/memory.stat").read_text(), re.MULTILINE)
        found.append(limit - used + sum(map(int, cached)))
    if not found:
        with suppress(AttributeError, ValueError, OSError):  # what is there in all
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def check(model: Decoder, s: Settings, longest: int, device: torch.device) -> str:
    """A line for the user, with a warning if it may not fit. OSError if it cannot: if the weights and what AdamW keeps
    of them do not, however short the completions are."""
    parts, room = needed(model, s, longest, device), free(device)
    shares = ", ".join(f"{name} {in_gb(size)}" for name, size in parts.items() if size >= 1e7)
    line = f"about {in_gb(peak(parts))} GB ({shares})"
    if room is None:
        return line
    line += f"; {in_gb(room)} are free"
    here = OTHERS if device.type == "cpu" else 0  # is taken already
    if parts["weights"] + parts["AdamW"] - here > room:
        raise OSError(f"the run needs {line}; try {ways_out(model, s, longest, device)}")
    if peak(parts) - here > room:
        warnings.warn(
            f"the memory may not suffice, if completions are long: {line}; then {ways_out(model, s, longest, device)}",
            stacklevel=1,
        )
    return line


def ways_out(model: Decoder, s: Settings, longest: int, device: torch.device) -> str:
    """What would need less."""
    parts, ways = needed(model, s, longest, device), []
    if s.dtype == "float32" and peak(needed(model, replace(s, dtype="bfloat16"), longest, device)) < peak(parts):
        ways.append("--dtype bfloat16")
    if not s.lora_rank:
        ways.append("--lora-rank 16")
    if parts["update"] > parts["sampling"]:
        ways += ["--gradient-checkpointing"] * (not s.gradient_checkpointing) + ["a lower --micro-batch-tokens"]
    else:
        ways.append("a lower --samples, --prompts or --max-new-tokens")
    return f"{', '.join(ways)}, or a smaller model"


def advice(phase: str, checkpoint: Path) -> str:
    """What to change where memory ran out in a phase of a run."""
    lower = {
        "sample": "--samples, --prompts or --max-new-tokens",
        "update": "--micro-batch-tokens or --max-new-tokens, or try --gradient-checkpointing",
        "measure": "--max-new-tokens, or measure nothing (--bypass identity --valid-layers border:1 --skip-ratio 0.3)",
        "evaluate": "--samples or --prompts, whose product is the size of a batch, or --max-new-tokens",
    }.get(phase, "the size of the model")
    return f"lower {lower}, in a new run, with --model {checkpoint} to keep the weights (phase: {phase or 'set-up'})"


def in_gb(size: float) -> str:
    return f"{size / 1e9:.0f}" if size >= 99.5e9 else f"{size / 1e9:.2g}"
