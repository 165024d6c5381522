"""The rows of a batch, in tensors and in micro-batches: what goes through the model at a time.

prompts: N lists of token ids, a row each; rows are numbered from 0 to N − 1
"""

from collections import defaultdict

import torch
from torch import Tensor

from support.distributed import balanced, deal


def micro_batches(
    prompts: list[list[int]], mask: Tensor, has_advantages: Tensor, budget: int
) -> list[tuple[list[int], bool]]:
    """Micro-batches of at most `budget` tokens, as (rows, whether they have a gradient); of several processes each gets
    its own.

    mask: (N, T) of the completions.  has_advantages: (N,) bool; rows without one go apart, and need no backward pass.
    """
    lengths, batches = mask.sum(dim=1).tolist(), []
    budget = balanced(budget, mask.numel())
    for signal in (True, False):
        rows = (has_advantages == signal).nonzero()[:, 0].tolist()
        batches += [(batch, signal) for batch in cut_by_tokens(rows, prompts, lengths, budget)]
    tokens = [tokens_of(rows, prompts, lengths) for rows, _ in batches]
    return deal(batches, [n * (3 if signal else 1) for n, (_, signal) in zip(tokens, batches, strict=True)])


def cut_by_tokens(rows: list[int], prompts: list[list[int]], lengths: list[int], budget: int) -> list[list[int]]:
    """Rows in batches of at most `budget` tokens, or of one row.

    Completions of a prompt stand together, for they share its pass, and those of similar length, for a batch is as long
    as its longest.
    """
    groups = defaultdict(list)
    for row in sorted(rows, key=lengths.__getitem__):
        groups[tuple(prompts[row])].append(row)
    batches = []
    for group in sorted(groups.values(), key=lambda group: lengths[group[-1]]):
        if not batches or tokens_of(batches[-1] + group, prompts, lengths) > budget:
            batches.append([])
        for row in group:
            if batches[-1] and tokens_of(batches[-1] + [row], prompts, lengths) > budget:
                batches.append([])
            batches[-1].append(row)
    return batches


def tokens_of(rows: list[int], prompts: list[list[int]], lengths: list[int]) -> int:
    """What a pass over these rows computes, padding included."""
    different, _ = distinct([prompts[row] for row in rows])
    return len(rows) * max(lengths[row] for row in rows) + len(different) * max(map(len, different))


def distinct(prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The different ones among n prompts, in the order they come in, and the number of each row's among them."""
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of_row = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    return [list(prompt) for prompt in numbers], prompt_of_row


def pad_left(prompts: list[list[int]], device) -> tuple[Tensor, Tensor | None]:
    """Prompts as tokens (P, T) that end in the same column, and the number of unused ones before each, (P,), or None if
    there are none."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    return tokens, padding if padding.any() else None


def pad_right(completions: list[list[int]], device) -> tuple[Tensor, Tensor]:
    """Lists of token ids as tokens and mask, (n, T) each, as a `Rollout` holds them."""
    longest = max(map(len, completions))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in completions], device=device)
    lengths = torch.tensor([len(ids) for ids in completions], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
