"""Ctrl-C before `main`, in the seconds that importing torch takes, is one line and status 130."""

import sys


def report(kind: type[BaseException], error: BaseException, trace) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print("interrupted", file=sys.stderr)
    sys.exit(130)


sys.excepthook = report
