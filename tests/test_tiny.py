"""The embedded model, the script that makes it, and the run that a newcomer starts with."""

import json
from itertools import islice

import pytest
import torch
from conftest import spy

import data
import train
from data import arith
from docs import tiny
from evaluate import evaluate
from model import Decoder
from reward import extract_answer
from support.log import read
from support.pretrained import load_model
from support.tokenizer import Tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "head_dim": 8}


@pytest.fixture(scope="module")
def embedded():
    return load_model(str(data.EMBEDDED), "float32", "cpu")


def test_it_is_a_small_checkpoint_of_many_layers():
    """A folder like any other: small enough for a repository, deep enough for a choice of layers to skip."""
    assert sum(path.stat().st_size for path in data.EMBEDDED.iterdir()) < 12 * 2**20
    config = json.loads((data.EMBEDDED / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_hidden_layers"] >= 12


def test_the_script_writes_where_the_run_reads(capsys):
    """`python -m docs.tiny` without a flag remakes the default model of train.py."""
    assert data.EMBEDDED.is_dir() and tiny.main([]) == 2 and str(data.EMBEDDED) in capsys.readouterr().err


def test_numbers_are_read_digit_by_digit(embedded):
    """A number that was a token of its own would have to be learned by heart."""
    _, tokenizer = embedded
    ids = tokenizer.encode_prompt("Aisha has 407 beads and 90 badges.")
    pieces = [tokenizer.decode([i]) for i in ids]
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("40790")


def test_prompt_and_completion_survive_the_tokenizer(embedded):
    """The prompt is the question alone: this model need not be asked for the form of its answer."""
    _, tokenizer = embedded
    for problem in arith.load("wordings")[:50]:
        assert tokenizer.decode(tokenizer.encode_prompt(problem.question)) == problem.question + "\n"
        completion = tokenizer.encode_completion(problem.rationale)
        assert completion[-1] == tokenizer.eos_id and tokenizer.decode(completion) == problem.rationale
    assert tokenizer.decode(tokenizer.encode_prompt("Two\nlines?")) == "Two\nlines?\n"


def test_it_answers_readably_and_leaves_room_to_learn(embedded):
    """Before reinforcement: well-formed answers, of which about half are right."""
    records = evaluate(*embedded, arith.load("test")[:120], 128, temperature=1.0)
    readable = [record["ended"] and extract_answer(record["completion"]) is not None for (record,) in records]
    right = sum(record["correct"] for (record,) in records)
    assert sum(readable) >= 0.95 * 120
    assert 0.3 * 120 < right < 0.7 * 120  # 35 to 65 % of 500; three standard errors of 120 are 13 points


@pytest.mark.slow
def test_the_first_run_learns(tmp_path, monkeypatch, capsys):
    """The README's first command in short, the same eight problems in each step: what the nested samples earn rises.

    Of two seeds, from 0.52 and 0.44 before the first update to 0.73 and 0.74 in the last four steps."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: load(*given)[8:16])
    flags = "--steps 8 --prompts 8 --lr 1e-3 --eval-every 1000 --eval-problems 4".split()
    assert train.main([*flags, "--out", str(tmp_path / "out")]) == 0
    rows = [row for row in read(tmp_path / "out") if row["phase"] == "reinforce"]
    assert all(len(row["skipped_layers"]) == 4 for row in rows)
    before, after = rows[0]["reward"], sum(row["reward"] for row in rows[-4:]) / 4
    assert after > before + 0.1
    printed = capsys.readouterr().out
    assert "new wordings, sampled" in printed and "tokens/s" in printed and "· reward of the nested samples" in printed


@pytest.mark.slow
def test_the_training_lowers_the_loss_on_the_train_split(tmp_path, monkeypatch):
    """Of the full model: no layer is ever skipped."""
    streams, calls = spy(monkeypatch, arith, "stream"), spy(monkeypatch, tiny, "completion_logprobs")
    model, losses = Decoder.from_pretrained(tiny.build(tmp_path / "tiny", vocab_size=400, **SMALL)), []
    monkeypatch.setattr(tiny, "supervised_loss", lambda *a: losses.append(train.supervised_loss(*a)) or losses[-1])
    tiny.teach(model, Tokenizer(tmp_path / "tiny"), steps=40, size=16, lr=0.05)
    assert {call["split"] for call in streams} == {"train"}
    assert all(call["skip"] is None for call in calls)
    assert sum(losses[-6:]) / 6 < 0.6 * sum(losses[:6]) / 6


def test_rationales_come_first_and_a_fifth_of_the_last_answers_are_bare(embedded):
    """Bare answers teach no reading, but leave something for the reward to find out."""
    _, tokenizer = embedded
    drawn = list(islice(tiny.batches(tokenizer, size=16, seed=0, bare=32), 64))
    texts = [[tokenizer.decode(completion) for _, completion in pairs] for pairs in drawn]
    bare = [sum(text.startswith("####") for text in texts) / 16 for texts in texts]
    assert sum(bare[:32]) == 0 and 0.15 < sum(bare[32:]) / 32 < 0.25
    assert all(len(pairs) == 16 for pairs in drawn)


def test_building_again_gives_the_same_untrained_checkpoint(tmp_path):
    """Tokenizer and weights are functions of the seed; another seed is another model."""
    first, again, other = (tiny.build(tmp_path / f"{i}", seed, 400, **SMALL) for i, seed in enumerate((0, 0, 1)))
    assert (first / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()
    first, again, other = (Decoder.from_pretrained(folder) for folder in (first, again, other))
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and (a.dim() == 1 or not torch.equal(a, c)) for a, b, c in pairs)


def test_a_model_that_is_there_is_not_replaced(capsys):
    """More than an hour of work and a committed file."""
    assert tiny.main([]) == 2
    assert "delete it" in capsys.readouterr().err


def test_the_script_writes_a_whole_checkpoint_and_says_what_it_can(tmp_path, monkeypatch, capsys):
    """In float16, with its tokenizer, and nothing under its name before the end."""
    monkeypatch.setattr(tiny, "build", lambda folder, seed, build=tiny.build: build(folder, seed, 400, **SMALL))
    monkeypatch.setattr(arith, "SIZES", {"train": 300, "test": 8, "wordings": 8})
    out = tmp_path / "new"
    monkeypatch.setattr(tiny, "teach", lambda *a, teach=tiny.teach, **k: out.exists() or teach(*a, **k | {"size": 4}))
    assert tiny.main(["--out", str(out), "--steps", "3", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines()] == [
        f"{split}, {mode}" for split in ("test", "wordings") for mode in ("greedy", "sampled")
    ]
    assert Decoder.from_pretrained(out, torch.float16).config.num_hidden_layers == 6
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_without_the_folder_the_run_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    """Not the hub's complaint about a name that looks like a path."""
    monkeypatch.setattr(data, "EMBEDDED", tmp_path / "tiny")
    assert train.main(["--out", str(tmp_path / "out")]) == 2
    assert "python -m docs.tiny" in capsys.readouterr().err
