"""Published files: where they come from, how they are fetched and checked, and how their records are read."""

import http.client
import json
import math
import os
import re
import socket
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from answers import canonical, plain
from data.problem import Problem
from reward import LONG_DECIMAL, is_correct

SENTENCE = 5  # words of an answer from which on it reads as a sentence
COMMON = 0.02  # share of the problems with one answer, no number, from which on a warning is due
CHOICE = re.compile("[a-j]|yes|no|true|false")  # but not for these
NO_ANSWER = re.compile(
    r"[^\w\\]*|n/?a|none|null|nan|unknown|error|omitted|tbd|qed|proof|not ?found|see\b.*|\\(?:black)?square"
)


@dataclass(frozen=True)
class Source:
    name: str  # of the file, in a data_dir and in the cache
    url: str
    sha256: str
    records: int  # in the published file


def cache_folder() -> Path:
    """Where downloads are kept. Raises FileNotFoundError where no home folder is known."""
    folder = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    if str(folder).startswith("~"):
        raise FileNotFoundError("no home folder is known for downloads; set HOME or XDG_CACHE_HOME, or give --data-dir")
    return folder / "nested-reft"


def find(source: Source, data_dir: str | Path | None) -> Path:
    """The file in data_dir, or in the cache, where it is downloaded to if need be."""
    if data_dir is not None:
        path = Path(os.path.expanduser(data_dir)) / source.name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected {source.name} from {source.url}")
        return path
    path = cache_folder() / source.name
    if not path.is_file():
        download(source, path)
    return path


def download(source: Source, path: Path) -> None:
    """Fetches the file and checks its sum: `path` is whole or absent. Raises ConnectionError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a server that says nothing more would otherwise be waited for without an end
    try:
        torch.hub.download_url_to_file(source.url, str(path), source.sha256, progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # the last for a wrong sum
        raise ConnectionError(
            f"could not download {source.url} ({error}); put the file at {path}, or into a folder "
            "given as --data-dir, or use --dataset arith, which needs no file"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def read_problems(
    path: Path, fields: dict[str, type | tuple], to_problem: Callable[[dict], Problem], expected: int | None = None
) -> list[Problem]:
    """What `to_problem` makes of the records of a JSON list or of JSON lines, in their order.

    fields: what each record must hold, and of which types.  expected: records of the published file; another count is
    printed, for a partial file may be meant but should not go unnoticed.
    Raises ValueError that names the file and the line (or the record of a list): no record is ever left out. Answers
    that are hard to reach (`doubt`) are counted and named.
    """
    problems, doubtful = [], defaultdict(list)
    for place, record in read_records(path):
        try:
            for field, kind in fields.items():
                if not isinstance(record, dict) or not isinstance(record.get(field), kind):
                    raise ValueError(f"expected a record with the field {field!r}, got {repr(record)[:80]}")
            problem = to_problem(record)
            if not problem.question.strip():
                raise ValueError("the question is empty")
            if not is_correct(f"#### {problem.answer}", problem.answer):  # nobody could ever be right
                raise ValueError(f"expected the answer alone, as one value, got {problem.answer[:80]!r}")
            (problem.question + problem.answer + problem.rationale).encode()  # JSON can say what UTF-8 cannot
        except ValueError as error:
            raise ValueError(f"{path}, {place}: {error}") from None
        problems.append(problem)
        if why := doubt(problem.answer):
            doubtful[why].append(f"{problem.answer[:80]!r} ({place})")
    if not problems:
        raise ValueError(f"{path}: no records")
    if expected is not None and len(problems) != expected:
        print(f"{path}: {len(problems):,} problems (the published file has {expected:,})", file=sys.stderr)
    for why, places in doubtful.items():
        some = ", ".join(places[:3]) + ", …" * (len(places) > 3)
        warnings.warn(f"{path}: answers that {why}: {len(places):,}, {some}", stacklevel=1)
    texts = Counter(plain(p.answer).lower() for p in problems if not isinstance(canonical(p.answer)[0], Fraction))
    for text, n in texts.items():
        if n >= max(5, COMMON * len(problems)) and not CHOICE.fullmatch(text.strip("() ")):
            warnings.warn(
                f"{path}: {n:,} of {len(problems):,} problems have the answer {text[:80]!r}, which a model learns to "
                "give to all; take them out if it is a mark and no answer",
                stacklevel=1,
            )
    return problems


def doubt(answer: str) -> str:
    """What makes a reference answer hard to reach, as the rest of "answers that"; empty if nothing does."""
    text, (value, _) = plain(answer), canonical(answer)
    bare = re.match(r"\S*[0-9](?= \(?[A-Za-z]{2}| ?[A-Za-z] [0-9])", text)
    if len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)) >= SENTENCE:
        return "read as sentences, which a completion has to repeat word for word"
    if NO_ANSWER.fullmatch(text.lower()):
        return "look like marks"
    if bare and not is_correct(f"#### {bare[0]}", answer):
        return "say more than a number and its unit"
    if re.search("[0-9]", text) and isinstance(value, str) and not re.search(r"[A-Za-z\\^_:!+*]", text):
        return "hold a number and are compared as text"
    if LONG_DECIMAL.search(text) and isinstance(value, Fraction):
        return "have so many decimals that the fraction, or a rounding to two or more, counts as well"
    return ""


def read_records(path: Path) -> list[tuple[str, object]]:
    """The records of a JSON list or of JSON lines, whatever the file is called, each with its place.

    Raises ValueError that names the place.
    """
    place = "the whole file"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.lstrip().startswith("["):
            found = []
            for n, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028 too
                place = f"line {n}"
                if line.strip():
                    found.append((place, json.loads(line, parse_float=finite, parse_constant=finite)))
            return found
        records = json.loads(text, parse_float=finite, parse_constant=finite)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, {place}: no JSON ({error}); expected a record a line, or a list of them") from None
    return [(f"record {n}", record) for n, record in enumerate(records, start=1)]


def finite(text: str) -> float:
    """A number of a JSON file. Raises ValueError for NaN, Infinity and 1e400, which Python's json takes."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no number")
    return number


def number(answer: str) -> str:
    """The answer as it is. Raises ValueError where it is none of a data set all of whose answers are plain numbers."""
    value, unit = canonical(answer)
    if not isinstance(value, Fraction) or unit:
        raise ValueError(f"expected a number as the answer, got {answer[:80]!r}")
    return answer
