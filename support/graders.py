"""Who decides whether a completion is right: reward.py's rules, or math-verify behind a time limit."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from threading import Timer

from reward import FORMULAS, MAX_CHARACTERS, canonical, extract_answer, is_correct, unnamed

GRADERS = ("rules", "math-verify")


def grader(name: str) -> Callable[[str, str], bool]:
    """What maps a completion and a reference answer to right or wrong. ValueError for math-verify if it is missing."""
    return MathVerify().is_correct if name == "math-verify" else is_correct


class MathVerify:
    """The grader of --grader math-verify: `is_correct` and, of references that are no numbers, symbolic equality too.

    A number has to be worked out: 3 + 4 is no answer where 7 is asked for. And the values have to be of one shape:
    math-verify would take (2, 1) for "1, 2", 1010_3 for 1010_2, and the last side of 8 = x + 1 for the answer.

    The library works in a process of its own. One that has not answered in `limit_s` seconds is killed, which counts as
    no, and the next question starts another (a second or two). Raises ValueError where math-verify does not run.
    """

    def __init__(self, limit_s: float = 3.0):
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("--grader math-verify needs another package: pip install math-verify")
        self.limit_s, self.worker = limit_s, None
        self.start()

    def start(self) -> None:
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "support.graders"],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not for it; it ends with its input
        )
        if self.worker.stdout.readline() != b"ready\n":
            said = self.worker.communicate()[1].decode(errors="replace").strip().splitlines() or ["it was killed"]
            self.worker = None
            raise ValueError(f"--grader math-verify: the package does not run ({said[-1]})")

    def is_correct(self, completion: str, answer: str) -> bool:
        if is_correct(completion, answer):
            return True
        given, expected = extract_answer(completion), unnamed(canonical(answer))
        if given is None or isinstance(expected, Fraction) or shape(unnamed(canonical(given))) != shape(expected):
            return False
        return self.equal(given, answer)

    def equal(self, given: str, answer: str) -> bool:
        """What math-verify alone says of two texts."""
        question = [self.limit_s, given.strip().removesuffix("."), answer.strip().removesuffix(".")]
        if max(len(given), len(answer)) > MAX_CHARACTERS:
            return False
        if self.worker is None or self.worker.poll() is not None:
            self.start()
        timer = Timer(self.limit_s, self.worker.kill)
        timer.start()
        line = b""
        try:
            self.worker.stdin.write(json.dumps(question).encode() + b"\n")
            self.worker.stdin.flush()
            line = self.worker.stdout.readline()
        except OSError:  # killed meanwhile
            pass
        finally:
            timer.cancel()
            if not line:  # killed, or interrupted, when it would still answer
                self.close()
        return line == b"true\n"

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None


def shape(found) -> tuple | None:
    """Kind and size of a list, tuple, matrix or relation; a subscript with its own."""
    if isinstance(found, tuple) and found[0] == "_":
        return "_", found[2]
    flat = found is None or isinstance(found, str | Fraction) or found[0] in FORMULAS
    return None if flat else (found[0], len(found))


def answer_questions() -> None:
    """The other process: a line [seconds, given, answer] of JSON in, a line true or false out."""
    import logging
    import signal

    import math_verify

    logging.disable()
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))  # 9^{9^9} is stopped by its size before its time
    except (ImportError, ValueError, OSError):  # not on Windows; or there is a lower limit already
        pass
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads its errors from here on
    for line in sys.stdin:
        limit_s, *texts = json.loads(line)
        if hasattr(signal, "alarm"):
            signal.alarm(int(limit_s) + 2)  # ends it where nobody is left to do it
        given, answer = (math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in texts)
        equal = math_verify.verify(answer, given, float_rounding=12, timeout_seconds=None)
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    answer_questions()
