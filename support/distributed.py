"""Several processes, one run: what each asks of the others. With one process no function here communicates.

    torchrun --nproc-per-node 8 train.py ...

torchrun starts N processes, the ranks 0 to N − 1, each with its own device and the whole model in the dtype of the
passes. What they share out: the prompts of a rollout (`share`), the micro-batches of an update (`deal`), and AdamW with
its float32 masters, of which each holds a slice of every tensor (`shard`; ZeRO's second stage, Rajbhandari et al.,
2020). What they agree on comes from all (`all_gather`, `all_reduce`, `anyone`) or from rank 0 (`from_rank_0`).
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

MESH: list[DeviceMesh] = []  # one, while there are several processes
ENVIRONMENT = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
HOURS = timedelta(hours=2)  # to wait for another rank: an evaluation, a download; a rank that died is not waited for


def join(device: str) -> str:
    """Joins the processes that torchrun has started, if it has and this one has not yet; -> the device of this one.
    ValueError for a device that several cannot have, and where the environment is not torchrun's."""
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        return device
    found = {name: os.environ.get(name, "") for name in ENVIRONMENT}
    numbers = [int(found[name]) for name in ENVIRONMENT if name != "MASTER_ADDR" and found[name].isdecimal()]
    if len(numbers) < 4 or not found["MASTER_ADDR"] or numbers[1] >= numbers[0]:
        raise ValueError(
            f"the environment has {', '.join(f'{k}={v}' if v else f'no {k}' for k, v in found.items())}, which makes "
            "no group of processes; start them with torchrun, or unset WORLD_SIZE for one process"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"--device is {device!r}, with several processes; expected auto, cpu or cuda: each takes its own"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    mine = f"cuda:{os.environ['LOCAL_RANK']}" if cuda else "cpu"
    if not MESH:
        if cuda and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise ValueError(
                f"--device {device}: more processes than GPUs, of which there are {torch.cuda.device_count()}"
            )
        if cuda:
            torch.cuda.set_device(mine)
        where = {"device_id": torch.device(mine)} if cuda else {}
        dist.init_process_group("nccl" if cuda else "gloo", timeout=HOURS, **where)
        MESH.append(init_device_mesh("cuda" if cuda else "cpu", (dist.get_world_size(),)))
        if rank() > 0:  # rank 0 speaks for all, but for the error that ends another
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
            warnings.simplefilter("ignore")
    return mine


def leave() -> None:
    """Ends this process with status 0, once all are ready to; on one process nothing happens.

    Without the interpreter's own end: a thread of gloo that frees a tensor during it aborts the process, now and then
    (pytorch/pytorch#190489), although the group is destroyed by then."""
    if MESH:
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank() -> int:
    """Before `join` too, which says what is wrong with these variables."""
    size, own = (os.environ.get(name, "") for name in ENVIRONMENT[:2])
    return int(own) if size not in ("", "1") and own.isdecimal() else 0


def world_size() -> int:
    return MESH[0].size() if MESH else 1


def single_process() -> bool:
    return not MESH


def no_bar() -> bool | None:
    """For tqdm's `disable`: a bar is drawn by rank 0, and only on a terminal (None)."""
    return True if rank() > 0 else None


def let_rank_0_speak() -> None:
    """An error that all ranks meet is told once: while the others wait here rank 0 ends, and torchrun ends them."""
    if rank() > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)


def balanced(budget: int, tokens: int) -> int:
    """Tokens of a micro-batch: small enough that `deal` gives all the same to do."""
    return budget if single_process() else max(1, min(budget, tokens // (2 * world_size())))


def share(n: int) -> slice:
    """This process's share of n items, which stand in a row; all on one process."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size()) if MESH else slice(0, n)


def deal(items: list, costs: list[float]) -> list:
    """This process's part of items of different cost, as `deal` gives it to all: the dearest first, each to the process
    that has the least to do (the longest processing time rule; Graham, 1969)."""
    loads, mine = [0.0] * world_size(), []
    for i in sorted(range(len(items)), key=lambda i: -costs[i]):
        least = loads.index(min(loads))
        loads[least] += costs[i]
        if least == rank() or not MESH:
            mine.append(i)
    return [items[i] for i in sorted(mine)]


def all_gather(item) -> list:
    """What each process has of it, by rank."""
    if not MESH:
        return [item]
    items = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def from_rank_0(make: Callable):
    """What rank 0 makes, for all."""
    if not MESH:
        return make()
    item = [make() if rank() == 0 else None]
    dist.broadcast_object_list(item, src=0)
    return item[0]


def all_reduce(x: Tensor | float) -> Tensor | float:
    """The sum of all processes' x; a tensor's in place."""
    if not isinstance(x, Tensor):
        return sum(all_gather(x))
    if MESH:
        dist.all_reduce(x)
    return x


def anyone(flag: bool) -> bool:
    """Whether it is so for any process."""
    return any(all_gather(flag))


@contextmanager
def rank_0_first():
    """Rank 0 goes through the block before all others do: what it downloads, they find."""
    if MESH and rank() > 0:
        dist.barrier()
    try:
        yield
    except Exception:  # which the others are to meet in their turn; not Ctrl-C, for they may be dead
        if MESH and rank() == 0:
            dist.barrier()
        raise
    if MESH and rank() == 0:
        dist.barrier()


def on_rank_0(do: Callable[[], None]) -> None:
    """What rank 0 does, while the others wait. Do not catch its errors: the other ranks would wait for ever."""
    if rank() == 0 or single_process():
        do()
    barrier()


def broadcast(x: Tensor) -> None:
    """Rank 0's x for all, in place."""
    if MESH:
        dist.broadcast(x, src=0)


def barrier() -> None:
    """Waits until all processes are here."""
    if MESH:
        dist.barrier()


# ---- tensors of which each process holds a slice of the rows


def shard(x: Tensor) -> Tensor:
    """This process's slice of a tensor that all have; x itself on one process."""
    return distribute_tensor(x, MESH[0], [Shard(0)], src_data_rank=None) if MESH else x


def reduce_scatter(x: Tensor) -> Tensor:
    """A slice of the sum of all processes' x."""
    return DTensor.from_local(x, MESH[0], [Partial()], run_check=False).redistribute(MESH[0], [Shard(0)]) if MESH else x


def gathered(x: Tensor) -> Tensor:
    """All slices together, on every process."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local_shard(x: Tensor) -> Tensor:
    """The slice itself, as a plain tensor."""
    return x.to_local() if isinstance(x, DTensor) else x
