"""Published files: where they come from, how they are fetched and checked, and how their records are read."""

import hashlib
import http.client
import json
import os
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Source:
    name: str  # of the file, in a data_dir and in the cache
    url: str
    sha256: str
    records: int  # in the published file


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nested-reft"


def find(source: Source, data_dir: str | Path | None) -> Path:
    """The file in data_dir, or in the cache, where it is downloaded to if need be."""
    if data_dir is not None:
        path = Path(data_dir).expanduser() / source.name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected {source.name} from {source.url}")
        return path
    path = cache_folder() / source.name
    if not path.is_file():
        download(source, path)
    return path


def download(source: Source, path: Path) -> None:
    """Fetches to a temporary file beside `path`, checks the sum, and renames: `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=source.name, delete=False) as file:
        try:
            with urllib.request.urlopen(source.url, timeout=30) as response:
                size = int(response.headers.get("Content-Length") or 0) or None
                with tqdm(total=size, unit="B", unit_scale=True, desc=source.name, disable=None) as bar:
                    while block := response.read(1 << 16):
                        digest.update(block)
                        file.write(block)
                        bar.update(len(block))
            if digest.hexdigest() != source.sha256:
                raise OSError(f"its sha256 is {digest.hexdigest()}, expected {source.sha256}")
            os.replace(file.name, path)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"could not download {source.url} ({error}); put the file at {path}, or into a folder "
                "given as --data-dir, or use --dataset arith, which needs no file"
            ) from None
        finally:
            Path(file.name).unlink(missing_ok=True)


def read_records(path: Path, fields: dict[str, type | tuple], expected: int) -> list[dict]:
    """The records of a JSON list (*.json) or of JSON lines (*.jsonl), each checked to hold `fields` of their types.

    Prints the count where it is not the `expected` one: a partial file may be meant, but should not go unnoticed.
    Raises ValueError that names the file and the line (or the record of a list).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            lines = [(f"line {n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        else:
            lines = [("the whole file", text)]
        records = []
        for place, line in lines:
            records.append((place, json.loads(line)))
        if path.suffix != ".jsonl":
            if not isinstance(records[0][1], list):
                raise ValueError(f"{path}: expected a JSON list of records, got {str(records[0][1])[:80]}")
            records = [(f"record {n}", record) for n, record in enumerate(records[0][1], start=1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, {place}: no JSON ({error})") from None
    for place, record in records:
        for field, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(field), kind):
                raise ValueError(f"{path}, {place}: expected a record with the field {field!r}, got {str(record)[:80]}")
    if not records:
        raise ValueError(f"{path}: no records")
    if len(records) != expected:
        print(f"{path}: {len(records):,} problems (the published file has {expected:,})", file=sys.stderr)
    return [record for _, record in records]
