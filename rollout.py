"""Sampling completions from a nested model, and their log-probabilities under the full one.

`generate` is the fast sampler: a batch, a key/value cache, finished rows leave. `generate_naive` is its
reference, as simple as possible: one row at a time, the whole sequence again for each token. Tests hold the two equal
token for token. `completion_logprobs` gives the same completions' log-probabilities in a teacher-forced pass,
differentiable, and `completion_logprobs_naive` is what that computes. Both fast ones read a prompt once for all its
completions.

Both the target π and the nested η are the softmax of logits/τ over the whole vocabulary: no top-k and no top-p, else
the ratios of the method would be wrong. The end token is an action like any other: it has its place in tokens, mask and
logprobs.

    P prompts   G samples of each   N = P·G rows   T tokens of the longest completion   V vocabulary
"""

from dataclasses import dataclass, replace
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache import CompletionCache, KVCache, PromptCache
from model import Decoder
from support.batches import distinct, pad_left
from support.distributed import all_gather, share, single_process
from support.fast import CapturedStep, TokenLogprobs, packed

VOCABULARY_BLOCK = 256  # tokens of the vocabulary that sampling sums up first
CHECK_EVERY = {"cpu": 1}  # tokens between two looks at which rows have ended; on other devices 8, for a look waits
CUDA_GRAPHS = {"cuda"}  # devices on which a decode step is captured; rows leave when half of them have ended there


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch, left-aligned, the G rows of a prompt together. Tensors are on the model's device."""

    prompts: list[list[int]]  # N lists of token ids: each prompt G times
    tokens: Tensor  # (N, T) int64; 0 outside the mask
    mask: Tensor  # (N, T) bool: True up to and including the end token
    logprobs: Tensor  # (N, T) of the distribution sampled from (E1's η); 0 outside the mask
    ended: Tensor  # (N,) bool: the last token is an end token; False: cut off

    def trimmed(self) -> "Rollout":
        """Without the columns that no completion reaches."""
        T = int(self.mask.any(dim=0).sum())
        return replace(self, tokens=self.tokens[:, :T], mask=self.mask[:, :T], logprobs=self.logprobs[:, :T])

    def on_cpu(self) -> "Rollout":
        return replace(self, **{name: x.cpu() for name, x in vars(self).items() if isinstance(x, Tensor)})

    def completion(self, row: int) -> list[int]:
        """A row's token ids without the end token."""
        tokens = self.tokens[row, self.mask[row]].tolist()
        return tokens[:-1] if self.ended[row] else tokens


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: list[list[int]],
    n_samples: int,
    max_new_tokens: int,
    eos_ids: list[int],
    temperature: float = 1.0,
    skip=None,
    seed: int | list[int] = 0,
    bypass=None,
    full_prefill: bool = False,
) -> Rollout:
    """Samples n_samples completions of each prompt, under one skip mask, until an end token or max_new_tokens.

    temperature: τ; 0 takes the most probable token, with log-probability 0 (a point mass).
    skip: L bools (D3).  bypass: what skipped blocks become (a `skip.Bypass`), None for the identity.
    full_prefill: the full model reads the prompts, and the nested one continues from its keys and values; else prompts
        and completions have the same mask.
    seed: an int, or P ints; sample g of prompt p draws from the stream (seed[p], g), and an int s stands for s, s+1, …
        A completion depends on its prompt and its stream, not on the rest of the batch.
    Of several processes each samples a share of the prompts, and all have the whole Rollout.
    Raises ValueError for an empty prompt and for one that leaves no room in the model's context.
    """
    uniforms = uniform_streams(model, prompts, n_samples, max_new_tokens, seed)  # (N, T)
    mine, part = share(len(prompts)), None  # all, on one process; None where there are more processes than prompts
    if prompts[mine]:
        uniforms = uniforms[mine.start * n_samples : mine.stop * n_samples]
        part = sample_rows(model, prompts[mine], uniforms, eos_ids, temperature, skip, bypass, full_prefill)
    return part if single_process() else joined(all_gather(part and part.on_cpu()), model.device)


def joined(parts: list[Rollout | None], device) -> Rollout:
    """The rollout whose rows several processes have sampled, one part below the other."""
    parts = [part for part in parts if part]
    T = max(part.tokens.shape[1] for part in parts)
    tokens, mask, logprobs = (
        torch.cat([F.pad(getattr(part, name), (0, T - part.tokens.shape[1])) for part in parts]).to(device)
        for name in ("tokens", "mask", "logprobs")
    )
    prompts = [prompt for part in parts for prompt in part.prompts]
    return Rollout(prompts, tokens, mask, logprobs, torch.cat([part.ended for part in parts]).to(device))


def sample_rows(
    model: Decoder,
    prompts: list[list[int]],
    uniforms: Tensor,
    eos_ids: list[int],
    temperature: float,
    skip,
    bypass,
    full_prefill: bool,
) -> Rollout:
    """`generate` on this process, from the numbers of its streams (N, T)."""
    N, T = uniforms.shape
    device = model.device
    eos = torch.tensor(sorted(eos_ids), device=device)
    rollout = empty_rollout(model, prompts, N // len(prompts), T)

    model = packed(model, N)
    read = prefill(model, rollout.prompts, skip, bypass, full_prefill)
    logits = model.lm_head(read.last_hidden)[read.prompt_of_row]  # (N, V)
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    cache = KVCache(read.cache, read.prompt_of_row, read.cache.length + T - 1, skip)
    if device.type != "mps":  # which has no float64
        uniforms = uniforms.to(device)
    rows = torch.arange(N, device=device)  # which completion each row of the shrinking batch is
    patience = CHECK_EVERY.get(device.type, 8)
    captures, step = device.type in CUDA_GRAPHS and single_process(), None
    for t in range(T):
        token, logprob = sample(logits, uniforms[rows.to(uniforms.device), t], temperature)  # (n,) each
        going = ~rollout.ended[rows]
        rollout.tokens[rows, t], rollout.logprobs[rows, t] = token.where(going, 0), logprob.where(going, 0.0)
        rollout.mask[rows, t] = going
        rollout.ended[rows] |= torch.isin(token, eos)
        if t + 1 == T:
            break
        if (t + 1) % patience == 0:
            done = rollout.ended[rows].cpu()
            if done.all():
                break
            if done.sum() > captures * len(done) / 2:
                kept, step = survivors(done), None
                cache.keep_rows(kept)
                rows, token = (x[kept.to(device)] for x in (rows, token))
        if captures:
            step = step or CapturedStep(model, cache, skip, bypass, len(token))
        logits = step(token) if step else model(token[:, None], cache, skip, bypass)[:, 0]
    return rollout.trimmed()


@torch.no_grad()
def generate_naive(
    model, prompts, n_samples, max_new_tokens, eos_ids, temperature=1.0, skip=None, seed=0, bypass=None,
    full_prefill=False,
) -> Rollout:  # fmt: skip
    """The specification of `generate`: each row alone, its whole sequence through the model again for every token."""
    uniforms = uniform_streams(model, prompts, n_samples, max_new_tokens, seed)
    rollout = empty_rollout(model, prompts, n_samples, max_new_tokens)
    for row, prompt in enumerate(rollout.prompts):
        for t in range(max_new_tokens):
            logits = logits_naive(model, prompt, rollout.tokens[row, :t], skip, bypass, full_prefill)[-1:]
            token, logprob = sample(logits, uniforms[row, t : t + 1], temperature)
            rollout.tokens[row, t], rollout.logprobs[row, t], rollout.mask[row, t] = token, logprob, True
            if token.item() in eos_ids:
                rollout.ended[row] = True
                break
    return rollout.trimmed()


def logits_naive(model: Decoder, prompt: list[int], completion: Tensor, skip, bypass, full_prefill: bool) -> Tensor:
    """(T + 1, V): what the T tokens of a completion, and the next one, are sampled from. Where the full model reads the
    prompt, it predicts the first of them."""
    prompt_tokens, completion = torch.tensor([prompt], device=completion.device), completion[None]
    if not full_prefill:
        return model(torch.cat((prompt_tokens, completion), dim=1), None, skip, bypass)[0, len(prompt) - 1 :]
    cache = PromptCache()
    first = model(prompt_tokens, cache)[:, -1:]
    if not completion.shape[1]:
        return first[0]
    follower = CompletionCache(cache, torch.tensor([0], device=completion.device), skip)
    return torch.cat((first, model(completion, follower, skip, bypass)), dim=1)[0]


def completion_logprobs(
    model: Decoder,
    prompts: list[list[int]],
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    skip=None,
    bypass=None,
    full_prefill: bool = False,
) -> tuple[Tensor, Tensor]:
    """log π of given completions, differentiable, and π's entropy at each token, detached.

    prompts: n lists; tokens, mask: (n, T) as in `Rollout` -> (n, T) each, 0 outside the mask.
    """
    read = prefill(model, prompts, skip, bypass, full_prefill)
    states = completion_hidden(model, read, tokens, mask, skip, bypass)  # (m, C)
    logprobs, entropy = TokenLogprobs.apply(states, model.lm_head.weight, tokens[mask], temperature)  # (m,)
    zeros = torch.zeros(mask.shape, dtype=logprobs.dtype, device=logprobs.device)
    return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy)


class Prefilled(NamedTuple):
    """The different ones among n prompts, P of them, after a pass over them."""

    cache: PromptCache
    last_hidden: Tensor  # (P, C): the states that the first tokens of completions are predicted from
    prompt_of_row: Tensor  # (n,): which of them each row has


def prefill(model: Decoder, prompts: list[list[int]], skip=None, bypass=None, full_prefill: bool = False) -> Prefilled:
    """Reads n prompts, each different one once; rows with the same prompt share its pass."""
    if full_prefill:
        skip = bypass = None
    different, numbers = distinct(prompts)
    tokens, padding = pad_left(different, model.device)
    cache = PromptCache(skip, padding)
    last_hidden = model.hidden(tokens, cache, skip, bypass)[:, -1]
    return Prefilled(cache, last_hidden, torch.tensor(numbers, device=model.device))


def completion_hidden(model: Decoder, read: Prefilled, tokens: Tensor, mask: Tensor, skip=None, bypass=None) -> Tensor:
    """The states (m, C) that the m tokens of completions are predicted from; tokens and mask (n, T).

    Gradients flow back through the keys and values of the prompts too.
    """
    tokens, width = tokens.where(mask, 0), int(mask.any(dim=0).sum())
    x = read.last_hidden[read.prompt_of_row][:, None]  # (n, 1, C): what follows is the first token
    if width > 1:
        cache = CompletionCache(read.cache, read.prompt_of_row, skip)
        x = torch.cat((x, model.hidden(tokens[:, : width - 1], cache, skip, bypass)), dim=1)  # (n, width, C)
    return x[mask[:, :width]]


def completion_logprobs_naive(
    model, prompts, tokens, mask, temperature=1.0, skip=None, bypass=None, full_prefill=False
) -> tuple[Tensor, Tensor]:
    """The specification of `completion_logprobs`: each row alone."""
    logprobs, entropies = [], []
    for prompt, completion in zip(prompts, (row[kept] for row, kept in zip(tokens, mask, strict=True)), strict=True):
        logits = logits_naive(model, prompt, completion[:-1], skip, bypass, full_prefill)
        every = log_softmax(logits, temperature)  # (T, V)
        logprobs.append(every.gather(1, completion[:, None])[:, 0])
        entropies.append(-(every.exp() * every).sum(dim=-1).detach())
    zeros = torch.zeros(mask.shape, dtype=logprobs[0].dtype, device=tokens.device)
    return zeros.masked_scatter(mask, torch.cat(logprobs)), zeros.masked_scatter(mask, torch.cat(entropies))


def empty_rollout(model: Decoder, prompts: list[list[int]], n_samples: int, max_new_tokens: int) -> Rollout:
    shape, device = (len(prompts) * n_samples, max_new_tokens), model.device
    return Rollout(
        prompts=[prompt for prompt in prompts for _ in range(n_samples)],
        tokens=torch.zeros(shape, dtype=torch.int64, device=device),
        mask=torch.zeros(shape, dtype=torch.bool, device=device),
        logprobs=torch.zeros(shape, dtype=torch.promote_types(model.dtype, torch.float32), device=device),
        ended=torch.zeros(shape[0], dtype=torch.bool, device=device),
    )


def survivors(done: Tensor) -> Tensor:
    """The rows that stay, (n,): each in its own place, or from beyond n into the place of a finished one."""
    n = int((~done).sum())
    rows = torch.arange(n)
    rows[done[:n]] = (~done[n:]).nonzero()[:, 0] + n
    return rows


def uniform_streams(model: Decoder, prompts, n_samples: int, max_new_tokens: int, seed: int | list[int]) -> Tensor:
    """Row p·G + g: the first numbers in [0, 1) of the stream (seed[p], g). (P·G, max_new_tokens), float64, CPU."""
    if not prompts or n_samples < 1 or max_new_tokens < 1:
        raise ValueError(
            f"{len(prompts)} prompts, {n_samples} samples, {max_new_tokens} new tokens: all must be positive"
        )
    longest, context = max(map(len, prompts)), model.config.max_position_embeddings
    if not all(prompts) or longest + max_new_tokens > context:
        raise ValueError(
            f"prompts of {min(map(len, prompts))} to {longest} tokens, {max_new_tokens} new ones: a prompt must not be "
            f"empty, and the model's max_position_embeddings leaves room for {context} in all"
        )
    seeds = range(int(seed), int(seed) + len(prompts)) if isinstance(seed, Integral) else seed
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    # numpy reads a large s as several words of 32 bits: its upper ones stand last, so that no two (s, g) are the same.
    keys = [(s % 2**32, g, s // 2**32) for s in seeds for g in range(n_samples)]
    streams = [np.random.default_rng(key).random(max_new_tokens) for key in keys]
    return torch.from_numpy(np.stack(streams))


def sample(logits: Tensor, u: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the distribution function: logits (n, V), uniform numbers u (n,) -> token, logprob.

    The running sum is in float64 and u is scaled by its last value: in float32 some of a large vocabulary's tokens
    could never be drawn, and the sum may end below 1. It goes over blocks of tokens first, then over those of one
    block. One number a row is far cheaper than torch.multinomial's V.
    """
    if temperature == 0:
        token = logits.argmax(dim=-1)
        return token, torch.zeros_like(token, dtype=torch.promote_types(logits.dtype, torch.float32))
    exact = torch.promote_types(logits.dtype, torch.float32)
    probabilities = F.softmax(logits if temperature == 1 else logits.to(exact) / temperature, dim=-1, dtype=exact)
    place = probabilities.cpu() if probabilities.device.type == "mps" else probabilities  # MPS has no float64
    V = place.shape[1]
    blocks = F.pad(place, (0, -V % VOCABULARY_BLOCK)).unflatten(1, (-1, VOCABULARY_BLOCK))  # (n, blocks, tokens)
    block, u = invert(blocks.sum(dim=-1), u.to(place.device))
    within, _ = invert(blocks[torch.arange(len(u), device=u.device), block], u)
    token = (block * VOCABULARY_BLOCK + within).clamp(max=V - 1).to(logits.device)  # (n,)
    return token, probabilities.gather(1, token[:, None])[:, 0].log()


def invert(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (n, m), u (n,) in [0, 1) -> the index (n,) at which the running sum passes the share u of the whole, and
    which share of that weight it then takes, in [0, 1): a number as uniform as u was."""
    running = weights.cumsum(dim=-1, dtype=torch.float64)
    target = u[:, None] * running[:, -1:]
    index = torch.searchsorted(running, target, right=True).clamp(max=weights.shape[-1] - 1)  # (n, 1)
    weight = weights.gather(1, index).double()
    share = (target - (running.gather(1, index) - weight)) / weight
    return index[:, 0], share[:, 0].clamp(0, 1 - 2**-53)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log of the softmax of logits/τ, in float32 or better."""
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
