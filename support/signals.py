"""When a run may be stopped: by Ctrl-C, by SIGTERM, SIGUSR1, SIGUSR2 or SIGXCPU (of a cluster, before it kills), by
SIGHUP (of a closed terminal).

terminable       all of them raise an exception, as Ctrl-C does: the first one, those after it are not heard
uninterrupted    a signal waits for the end of a block, so that no step and no file is left half done
raise_together   several processes stop at the same boundary
"""

import signal
from collections.abc import Callable
from contextlib import contextmanager

from support.distributed import all_gather, single_process

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
WAITING: list[int] = []  # signals that have come and have not been raised
RAISED: list[int] = []  # the one that has, within `terminable`


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM):
        self.status = 128 + number  # the exit status as a shell gives it


def raise_now(number: int, *_) -> None:
    """Raises KeyboardInterrupt or Terminated. Clusters and torchrun send SIGTERM twice, and people press Ctrl-C twice:
    the second must not cut short what the first has begun, and is dropped."""
    if RAISED:
        return
    RAISED.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def heeded() -> list[int]:
    """The SIGNALS that this process does not ignore (nohup ignores SIGHUP, a background job SIGINT)."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def handled(numbers: list[int], handler: Callable):
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, original in before.items():
            signal.signal(number, original)


@contextmanager
def terminable():
    """A context in which the first of the SIGNALS raises. Of several processes all signals wait for `raise_together`:
    one alone cannot stop."""
    try:
        with handled(heeded(), raise_now if single_process() else lambda number, _: WAITING.append(number)):
            yield
    finally:
        RAISED.clear()


def hear_no_more() -> None:
    """To the end of `terminable` signals are dropped: what ends the run has begun already."""
    RAISED.append(0)


@contextmanager
def uninterrupted(unless: Callable[[], bool] = lambda: False):
    """Signals wait for the end of this block, unless `unless()` is true when one arrives: then it raises at once."""

    def hear(number: int, _) -> None:
        if single_process() and unless():
            raise_now(number)
        WAITING.append(number)

    try:
        with handled(heeded(), hear):
            yield
    finally:
        waiting = WAITING[:1] if single_process() else []
        if single_process():
            WAITING.clear()
    if waiting:
        signal.raise_signal(waiting[0])


def raise_together() -> None:
    """At a boundary all of several processes raise what any of them has heard; and one process what it has raised in
    vain, in a destructor, which Python does not let out."""
    heard = RAISED[:] if single_process() else sum(all_gather(WAITING[:1]), [])
    if heard:
        WAITING.clear()
        RAISED.clear()
        raise_now(heard[0])
