"""The rows of a batch in micro-batches: what goes through the model at a time. A gradient does not depend on it.

prompts: N lists of token ids, a row each; rows are numbered from 0 to N − 1
"""

from collections import defaultdict

from torch import Tensor

from support.distributed import balanced, deal


def micro_batches(prompts: list[list[int]], mask: Tensor, has_signal: Tensor, budget: int) -> list[tuple[list, bool]]:
    """Micro-batches of at most `budget` tokens, as (rows, whether they have a gradient); of several processes each gets
    its own.

    mask: (N, T) of the completions.  has_signal: (N,) bool; rows without a signal go apart, for they need no backward
    pass.
    """
    lengths, batches = mask.sum(dim=1).tolist(), []
    budget = balanced(budget, mask.numel())
    for signal in (True, False):
        rows = (has_signal == signal).nonzero()[:, 0].tolist()
        batches += [(batch, signal) for batch in cut_by_tokens(rows, prompts, lengths, budget)]
    return deal(batches, [len(rows) * (3 if signal else 1) for rows, signal in batches])  # a backward pass costs two


def cut_by_tokens(rows: list[int], prompts: list[list[int]], lengths: list[int], budget: int) -> list[list[int]]:
    """Rows in batches of at most `budget` tokens, or of one row.

    Completions of a prompt stand together, for they share its pass, and those of similar length, for a batch is as long
    as its longest.
    """

    def tokens(batch: list[int]) -> int:
        different, _ = distinct([prompts[row] for row in batch])
        return len(batch) * max(lengths[row] for row in batch) + len(different) * max(map(len, different))

    groups = defaultdict(list)
    for row in sorted(rows, key=lengths.__getitem__):
        groups[tuple(prompts[row])].append(row)
    batches = []
    for group in sorted(groups.values(), key=lambda group: lengths[group[-1]]):
        if not batches or tokens(batches[-1] + group) > budget:
            batches.append([])
        for row in group:
            if batches[-1] and tokens(batches[-1] + [row]) > budget:
                batches.append([])
            batches[-1].append(row)
    return batches


def distinct(prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The different ones among n prompts, in the order they come in, and the number of each row's among them."""
    numbers: dict[tuple[int, ...], int] = {}
    of_row = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    return [list(prompt) for prompt in numbers], of_row
