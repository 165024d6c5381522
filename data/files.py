"""Published files: where they come from, how they are fetched and checked, and how their records are read."""

import http.client
import json
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from answers import canonical, plain
from data.problem import Problem
from reward import is_correct


@dataclass(frozen=True)
class Source:
    name: str  # of the file, in a data_dir and in the cache
    url: str
    sha256: str
    records: int  # in the published file


def cache_folder() -> Path:
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "nested-reft"


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
    """What `to_problem` makes of the records of a JSON list (*.json) or of JSON lines (*.jsonl), in their order.

    fields: what each record must hold, and of which types.  expected: records of the published file; another count is
    printed, for a partial file may be meant but should not go unnoticed.
    Raises ValueError that names the file and the line (or the record of a list): no record is ever left out. Answers
    that their number alone would not equal, "5 dozen", are counted and named: a completion has to say all of it.
    """
    problems, long = [], []
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
        bare = re.match(r"\S*[0-9](?= \(?[A-Za-z]{2})", plain(problem.answer))
        if bare and not is_correct(f"#### {bare[0]}", problem.answer):
            long.append(f"{problem.answer[:80]!r} ({place})")
    if not problems:
        raise ValueError(f"{path}: no records")
    if expected is not None and len(problems) != expected:
        print(f"{path}: {len(problems):,} problems (the published file has {expected:,})", file=sys.stderr)
    if long:
        some = ", ".join(long[:3]) + ", …" * (len(long) > 3)
        warnings.warn(f"{path}: {len(long):,} answers say more than a number and its unit: {some}", stacklevel=1)
    return problems


def read_records(path: Path) -> list[tuple[str, object]]:
    """The records of a JSON list or of JSON lines, each with its place. Raises ValueError that names the place."""
    place = "the whole file"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            records = []
            for n, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028 too
                place = f"line {n}"
                if line.strip():
                    records.append((place, json.loads(line, parse_constant=refuse)))
            return records
        records = json.loads(text, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, {place}: no JSON ({error})") from None
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a JSON list of records, got {repr(records)[:80]}")
    return [(f"record {n}", record) for n, record in enumerate(records, start=1)]


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def number(answer: str) -> str:
    """The answer as it is. Raises ValueError where it is none of a data set all of whose answers are plain numbers."""
    value, unit = canonical(answer)
    if not isinstance(value, Fraction) or unit:
        raise ValueError(f"expected a number as the answer, got {answer[:80]!r}")
    return answer
