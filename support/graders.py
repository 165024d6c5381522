"""Who decides whether a completion is right: reward.py's rules, or math-verify behind a time limit."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from threading import Timer

from answers import MAX_CHARACTERS, canonical, plain, unnamed, written
from data.problem import Problem
from reward import extract_answer, is_correct
from units import same_unit

GRADERS = ("rules", "math-verify")
Grader = Callable[[str, Problem], bool]  # a completion and its problem -> right or wrong


def make_grader(name: str) -> Grader:
    """The grader that --grader names. ValueError for math-verify if it is missing."""
    return MathVerify().is_correct if name == "math-verify" else by_rules


def by_rules(completion: str, problem: Problem) -> bool:
    return is_correct(completion, problem.answer)


class MathVerify:
    """The grader of --grader math-verify: reward.py's rules first; if they say no and the reference is no number, the
    library checks for symbolic equality.

    It is not asked about numbers, since 3 + 4 is no answer where 7 is wanted. Nor is it asked about a formula that
    stands in the problem, or about texts that are not `alike`.

    The library works in a process of its own. One that has not answered in `limit_s` seconds is killed: the answer
    counts as wrong, and the next comparison starts another (a second or two). Raises ValueError where math-verify does
    not run.
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
        if self.worker.stdout.readline().strip() != b"ready":
            said = self.worker.communicate()[1].decode(errors="replace").strip().splitlines() or ["it was killed"]
            self.worker = None
            raise ValueError(f"--grader math-verify: the package does not run ({said[-1]})")

    def is_correct(self, completion: str, problem: Problem) -> bool:
        if is_correct(completion, problem.answer):
            return True
        given = extract_answer(completion) or ""
        return alike(given, problem.answer) and not holds(problem.question, given) and self.equal(given, problem.answer)

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
        return line.strip() == b"true"

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None


def alike(given: str, answer: str) -> bool:
    """Whether the two texts have one shape and spelling, so that only algebra can tell if they are equal.

    math-verify would take (2, 1) for "1, 2", 1010_3 for 1010_2, the last side of 8 = x + 1 for the answer, 3:30 a.m.
    for 3:30 p.m., and n/2 for N/2.
    """
    (found, unit), (expected, its_unit) = canonical(given), canonical(answer)
    found, expected = unnamed(found), unnamed(expected)
    if None in (found, expected) or isinstance(expected, Fraction) or not same_unit(unit, its_unit):
        return False
    texts = [re.sub(r"\\[A-Za-z]+", " ", plain(text)) for text in (given, answer)]
    words = [re.findall(r":.*|\b[ap]m\b|[A-Za-z]{3,}", text) for text in texts]
    letters = set(re.findall("[A-Za-z]", "".join(texts)))
    return (
        shape(found) == shape(expected)
        and words[0] == words[1]
        and len({letter.lower() for letter in letters}) == len(letters)
    )


def shape(found) -> tuple | None:
    """Kind and size of a list, tuple or matrix, the signs of a relation, the base of a numeral."""
    if isinstance(found, tuple):
        return found[:2] if found[0] == "relation" else (found[0], len(found))
    base = re.search(r"_\{?(\w+)\}?$", found) if isinstance(found, str) else None
    return base and ("base", base[1])


def holds(question: str, given: str) -> bool:
    """Whether the formula `given`, or the value that it gives a name to, stands in the question."""
    found = unnamed(canonical(given)[0])
    return (found if isinstance(found, str) else written(plain(given))) in written(plain(question))


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
            signal.alarm(int(limit_s) + 2)  # ends this process if the one that asked is gone
        given, answer = (math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in texts)
        equal = math_verify.verify(answer, given, float_rounding=12, timeout_seconds=None)
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    answer_questions()
