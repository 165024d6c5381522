"""Specification of checkpoints from the hub: huggingface_hub's own client against a server of this machine.

The server speaks as much of the hub's protocol as a download needs: a model's commit, the list of its files, and the
files, whole or from a byte on; and it can drop a connection, close a repository, or be gone.
"""

import hashlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST

import evaluate
from docs import tiny
from model import Decoder
from support.pretrained import find_checkpoint

NAME, SHA = "somebody/tiny", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def answer(self, send):
        hub = self.server
        hub.asked.append((self.command, self.path.partition("?")[0]))
        path = self.path.partition("?")[0]
        if not path.startswith((f"/api/models/{NAME}", f"/{NAME}/")):
            return self.respond(
                401, {"X-Error-Code": "RepoNotFound"}
            )  # as the hub does, whose repositories may be private
        if path.startswith(f"/api/models/{NAME}/tree/"):
            return self.respond(200, body=json.dumps([self.entry(file) for file in hub.listed]).encode(), send=send)
        if path.startswith("/api/"):
            described = {"id": NAME, "modelId": NAME, "sha": SHA, "siblings": [{"rfilename": f} for f in hub.listed]}
            return self.respond(200, body=json.dumps(described).encode(), send=send)
        if hub.gated:
            return self.respond(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        file = path.removeprefix(f"/{NAME}/resolve/{SHA}/")
        if not (hub.folder / file).is_file():
            return self.respond(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        content = (hub.folder / file).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = send and file == "model.safetensors" and hub.drops > 0
        hub.drops -= cut
        self.respond(206 if start else 200, headers, content[start:], send, half=cut)

    def entry(self, file):
        path = self.server.folder / file
        size = path.stat().st_size if path.is_file() else 1
        return {"type": "file", "oid": hashlib.sha1(file.encode()).hexdigest(), "size": size, "path": file}

    def respond(self, status, headers=None, body=b"", send=True, half=False):
        self.send_response(status)
        for header in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(*header)
        self.end_headers()
        if send:
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("published"), vocab_size=300, max_position_embeddings=256, **SMALLEST)


@pytest.fixture
def hub(monkeypatch, tmp_path, published):
    """A hub that has one model. .drops: connections to cut; .gated; .listed: its files; .stop(): gone."""
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.drops, server.gated, server.asked = published, 0, False, []
        server.listed = sorted(path.name for path in published.iterdir())
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(
            logging.getLogger("huggingface_hub"), "handlers", []
        )  # they keep the stderr of another test
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def stop():
            server.shutdown()
            server.server_close()

        server.stop = stop
        yield server
        stop()


@pytest.fixture
def complaint(capsys, tmp_path):
    """The one line that evaluate.py ends with on the model of a name, and its exit status."""

    def run(name=NAME):
        status = evaluate.main(["--model", name, "--dataset", "arith", "--out", str(tmp_path / "texts.jsonl")])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and not (tmp_path / "texts.jsonl").exists()
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and printed.err.rstrip().endswith(lines[0]), printed.err
        return status, lines[0]

    return run


def same(folder, published):
    names = {path.name for path in published.iterdir()}
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()} == {n: (published / n).read_bytes() for n in names}


def test_a_model_is_downloaded_once_whole(hub, published):
    """What trains is what was published; the second run asks for nothing that it has."""
    folder = find_checkpoint(NAME)
    assert same(folder, published)
    loaded, original = (Decoder.from_pretrained(each).state_dict() for each in (NAME, published))
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    assert [path for command, path in hub.asked if command == "GET"].count(
        f"/{NAME}/resolve/{SHA}/model.safetensors"
    ) == 1


def test_files_that_no_model_is_read_from_stay_where_they_are(hub, published, tmp_path):
    """Repositories hold the same weights in other formats, gigabytes of them, and pickles among them."""
    hub.listed += ["pytorch_model.bin", "model.gguf", "README.md", "consolidated.safetensors", "consolidated.json"]
    hub.listed += ["checkpoint-500/model.safetensors", "fp32/model.safetensors", "original/params.json"]
    assert same(find_checkpoint(NAME), published)


def test_the_model_of_sentencepiece_comes_too(hub, published):
    """Some tokenizers are published beside their tokenizer.json in it, and other programs read it."""
    hub.listed.append("tokenizer.model")
    (published / "tokenizer.model").write_bytes(b"pieces")
    try:
        assert (find_checkpoint(NAME) / "tokenizer.model").read_bytes() == b"pieces"
    finally:
        (published / "tokenizer.model").unlink()


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, published, monkeypatch):
    """A file of gigabytes over a hotel's network."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    hub.drops = 2
    assert same(find_checkpoint(NAME), published)


def test_a_hub_that_goes_on_dropping_is_named_and_the_next_run_repairs(hub, published, complaint, monkeypatch):
    """Half a file must not be taken for the model, by this run or the next."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    hub.drops = 10**9  # each leaves half of the rest, at last nothing
    status, line = complaint()
    assert status == 1 and NAME in line and "could not be downloaded" in line and "continues from there" in line
    hub.drops = 0
    assert same(find_checkpoint(NAME), published)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_repository_without_a_file_is_refused_by_its_name(hub, complaint, file):
    """Many repositories hold adapters, other formats or a tokenizer alone."""
    hub.listed.remove(file)
    status, line = complaint()
    assert status == 2 and file in line and "no such file" in line.lower()


def test_a_file_that_is_listed_and_not_there_is_named(hub, complaint):
    """The hub's storage has its own bad days."""
    hub.listed.append("model-00002-of-00002.safetensors")
    status, line = complaint()
    assert status == 1 and "model-00002-of-00002.safetensors" in line


def test_a_gated_model_says_how_to_get_in(hub, complaint):
    """Llama's own weights are gated; the client's message is a page about repositories."""
    hub.gated = True
    status, line = complaint()
    assert status == 1 and NAME in line and "terms" in line and "hf auth login" in line and "HF_TOKEN" in line


def test_a_name_that_the_hub_does_not_know(hub, complaint):
    """The hub answers 401, for the repository may be private: both have to be said, and a path may be meant."""
    status, line = complaint("somebody/tyni")
    assert status == 2 and "somebody/tyni" in line and "no such folder" in line and "hf auth login" in line


def test_without_a_network_the_cache_is_used(hub, published):
    """On a train, with what was downloaded at home."""
    find_checkpoint(NAME)
    hub.stop()
    assert same(find_checkpoint(NAME), published)


def test_without_a_network_half_a_download_is_no_model(hub, complaint, monkeypatch):
    """The folder in the cache exists by then, and holds all but the weights."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.drops = 10**9
    complaint()
    hub.stop()
    status, line = complaint()
    assert status == 2 and NAME in line


def test_without_a_network_or_a_cache_both_are_named(hub, complaint):
    """A folder was meant, or a network."""
    hub.stop()
    status, line = complaint()
    assert status == 2 and NAME in line and "no such folder" in line and "refused" in line
