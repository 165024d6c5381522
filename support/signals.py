"""When a run may be stopped: by Ctrl-C, by SIGTERM or SIGUSR1 (of a cluster, before it kills), by SIGHUP (of a closed
terminal).

terminable       all of them raise an exception, as Ctrl-C does
uninterrupted    a signal waits for the end of a block, so that no step and no file is left half done
raise_together   several processes stop at the same boundary
"""

import signal
from collections.abc import Callable
from contextlib import contextmanager

from support.distributed import all_gather, single_process

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
WAITING: list[int] = []  # signals that have come and have not been raised


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM):
        self.status = 128 + number  # the exit status as a shell gives it


def raise_now(number: int, *_) -> None:
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


def terminable():
    """A context in which the other SIGNALS raise Terminated. Of several processes all signals wait for
    `raise_together`: one alone cannot stop."""
    if single_process():
        return handled([number for number in heeded() if number != signal.SIGINT], raise_now)
    return handled(heeded(), lambda number, _: WAITING.append(number))


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
    """At a boundary all of several processes raise what any of them has heard."""
    heard = [] if single_process() else sum(all_gather(WAITING[:1]), [])
    if heard:
        WAITING.clear()
        raise_now(heard[0])
