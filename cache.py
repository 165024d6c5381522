"""Keys and values of earlier tokens: a prompt is read once, and all its completions attend to what it left behind.

    PromptCache       the prompts in one pass; it keeps what that pass computes
    CompletionCache   whole completions of them in one pass, through which gradients flow back into both: `log π`
    KVCache           completions of them token by token, written in place and without gradients: sampling

`Decoder.forward` takes one as its argument, calls `reserve` once a pass and `update` in each layer, and adds the new
tokens to `length`. Rows are padded on the left, so that all end at column `length`: row b starts with padding[b] unused
columns. A cache belongs to one skip mask; completions may be read under another one than their prompts.

    P prompts   B rows   T new tokens   S key columns   K num_key_value_heads   D head_dim
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class PromptCache:
    """What a pass over P prompts leaves behind. The two caches below continue from it.

    skip: the mask that the prompts are read under, L bools or None.  padding: (P,) int64, or None if there is none.
    """

    next_column = None  # only a KVCache has one

    def __init__(self, skip=None, padding: Tensor | None = None):
        self.skip, self.padding = skip, padding
        self.length = self.columns = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values, (P, K, S, D), of layers that were read

    def reserve(self, T: int) -> None:
        """Makes room for T tokens. ValueError if the prompts have been read already."""
        if self.length:
            raise ValueError("the prompts have been read; what follows them needs a CompletionCache or a KVCache")
        self.columns = T

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.layers[layer] = k, v
        return k, v


class CompletionCache:
    """Completions in one pass: number i follows prompt rows[i], and is read under `skip`, whoever read the prompt.

    Nothing is written, so `update` gives the same keys and values when the backward pass computes a block again
    (gradient checkpointing).
    """

    next_column = None

    def __init__(self, prompts: PromptCache, rows: Tensor, skip=None):
        self.prompts, self.rows, self.skip = prompts, rows, skip
        self.length = self.columns = prompts.length
        self.padding = prompts.padding[rows] if prompts.padding is not None else None

    def reserve(self, T: int) -> None:
        """Makes room for T tokens. ValueError if the completions have been read already."""
        if self.length != self.prompts.length:
            raise ValueError("the completions have been read; a CompletionCache serves one pass")
        self.columns = self.length + T

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The new k and v (B, K, T, D) behind those of each row's prompt, (B, K, S, D)."""
        keys, values = (stored.index_select(0, self.rows) for stored in self.prompts.layers[layer])
        return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)


class KVCache:
    """Completions token by token: row i follows prompt rows[i], and is read under `skip`, whoever read the prompt.

    Columns are allocated BLOCK at a time, and attention goes over all of them, hidden ones too: a product with a slice
    would copy it first.  After `hold` a step always does the same with the same memory, so that it can be captured.
    Skipped layers have no storage.  max_length: tokens of prompt and completion at most.
    """

    BLOCK = 64

    def __init__(self, prompts: PromptCache, rows: Tensor, max_length: int, skip=None):
        self.skip, self.max_length, self.device = skip, max_length, rows.device
        self.length = self.columns = prompts.length  # written, and allocated
        self.next_column: Tensor | None = None  # after `hold`, (1,): the caller advances it, and `length` stays
        self.padding = prompts.padding[rows] if prompts.padding is not None else None
        self.layers = {
            layer: tuple(stored.index_select(0, rows) for stored in pair)
            for layer, pair in prompts.layers.items()
            if not (skip and skip[layer])  # SKIP
        }

    def reserve(self, T: int) -> None:
        """Makes room for T more tokens. ValueError if that is beyond max_length."""
        end = self.length + T
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens a row; {end} were asked for")
        if end > self.columns:
            self.columns = min(self.max_length, -(-end // self.BLOCK) * self.BLOCK)
            self._map(lambda stored: F.pad(stored, (0, 0, 0, self.columns - stored.shape[2])))

    def hold(self) -> None:
        """Allocates all columns; from here on a token goes to `next_column`."""
        if self.next_column is None:
            self.reserve(self.max_length - self.length)
            self.next_column = torch.tensor([self.length], device=self.device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new (B, K, T, D) behind the old ones and returns all of the layer's, (B, K, S, D)."""
        keys, values = self.layers[layer]
        if self.next_column is not None:
            return keys.index_copy_(2, self.next_column, k), values.index_copy_(2, self.next_column, v)
        keys[:, :, self.length : self.length + k.shape[2]] = k
        values[:, :, self.length : self.length + k.shape[2]] = v
        return keys, values

    def keep_rows(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, for i < len(rows); the others leave.

        Copies only the rows that change place, in place: a row may come from behind the kept ones
        (rows[i] >= len(rows)) or stay (rows[i] = i), which is what `rollout.survivors` gives.
        """
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        source, moved = rows[moved].to(self.device), moved.to(self.device)

        def kept(stored: Tensor) -> Tensor:
            stored[moved] = stored[source]
            return stored[: len(rows)]

        self._map(kept)
        self.padding = kept(self.padding) if self.padding is not None else None

    def _map(self, change) -> None:
        self.layers = {layer: tuple(map(change, pair)) for layer, pair in self.layers.items()}
