"""What a run was made with is written down, and a change of it is said."""

import json
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST

import nested
import train
from docs import tiny
from model import Decoder
from support import lora, provenance
from support.pretrained import load_model
from support.settings import Settings

FLAGS = "--device cpu --steps 1 --prompts 2 --samples 2 --max-new-tokens 2 --eval-problems 1 --skip-ratio 0".split()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the code, to be edited."""
    for name in (*provenance.FILES, "data/own"):
        path = tmp_path / "code" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((provenance.ROOT / f"{name}.py").read_bytes())
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "code")
    return tmp_path / "code"


def append(path, text="# edited\n"):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_every_file_of_the_code_that_decides_a_result_is_known():
    """All that train.py imports, but for what starts, saves, draws and tells."""
    files = provenance.code()
    root = provenance.ROOT
    here = {str(p.relative_to(root)) for place in (".", "data", "support") for p in (root / place).glob("*.py")}
    tells = {f"{name}.py" for name in "bench look report".split()} | {
        f"support/{name}.py"
        for name in "__init__ checkpoint interrupt log memory page pictures provenance signals".split()
    }
    assert here - files.keys() == tells and files.keys() <= here


@pytest.mark.parametrize("name", ["reward.py", "support/fast.py", "data/own.py"])
def test_an_edit_of_one_file_is_seen_in_its_digest_alone(checkout, name):
    """A comment counts: which lines matter is not for us to guess. How lines end does not."""
    before = provenance.code()
    (checkout / name).write_bytes((checkout / name).read_bytes().replace(b"\n", b"\r\n"))
    assert provenance.code() == before
    append(checkout / name)
    after = provenance.code()
    assert {file for file in before if after[file] != before[file]} == {name} and before.keys() == after.keys()


def test_the_script_of_a_fork_counts(tmp_path):
    """Who writes a loop of their own hands it to `launch`."""
    (tmp_path / "mine.py").write_text("def learn(run):\n    pass\n")
    exec(compile((tmp_path / "mine.py").read_text(), tmp_path / "mine.py", "exec"), room := {})
    extra = provenance.code(learn=room["learn"]).keys() - provenance.code().keys()
    assert [name.rpartition("/")[2] for name in extra] == ["mine.py"]
    assert provenance.code(learn=train.learn) == provenance.code()


def test_the_commit_is_known_where_there_is_one(checkout):
    """With a mark where files were edited since, and nothing without git."""
    assert provenance.commit() is None
    git = ["git", "-C", str(checkout), "-c", "user.name=A", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        subprocess.run([*git, *command], check=True)
    first = provenance.commit()
    append(checkout / "reward.py")
    assert len(first) == 12 and provenance.commit() == f"{first}-dirty"


def entries(folder) -> list[dict]:
    return json.loads((folder / "made_with.json").read_text())


def test_a_run_says_what_it_was_made_with_and_a_resume_what_changed(checkout, checkpoint, tmp_path, recwarn):
    """Code that was edited between the two is named; a resume of the same code changes nothing."""
    out = tmp_path / "out"
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(out)]) == 0
    [made] = entries(out)
    assert made["code"] == provenance.code(learn=train.learn)
    assert (made["torch"], made["device"], made["after"]) == (torch.__version__, "cpu", "reinforce step 0")
    for steps, edited in (("2", False), ("3", True), ("4", False)):
        if edited:
            append(checkout / "losses.py")
            append(checkout / "reward.py")
        recwarn.clear()
        assert train.main(["--out", str(out), "--resume", "--steps", steps]) == 0
        said = [str(warning.message) for warning in recwarn.list if "continues with" in str(warning.message)]
        assert said == edited * [f"{out}: the run continues with other losses.py, reward.py than it had"]
        assert [entry["after"] for entry in entries(out)] == ["reinforce step 0", "reinforce step 2"][: int(steps) - 1]


def made(folder, adapter: str = "", change=None) -> dict:
    """What a run of the model in a folder would be made with."""
    model, tokenizer = load_model(folder, "float32", "cpu")
    if change:
        change(model)
    return provenance.made_with(model, tokenizer, Settings(adapter=adapter).decided(), 1)


def test_weights_are_known_by_what_they_are(tmp_path):
    """A path says nothing: the folder may have been trained on. Its seed says nothing of a model with new adapters."""

    def adapters(seed: int):
        def change(model):
            lora.add(model, 2, seed=seed)
            torch.nn.init.normal_(lora.adapted(model)[0].lora_B.weight)

        return change

    one, other = (tiny.build(tmp_path / str(seed), vocab_size=300, seed=seed, **SMALLEST) for seed in (0, 1))
    digests = [made(folder)["model"] for folder in (one, other)]
    assert len(set(digests)) == 2
    assert [made(one, change=adapters(seed))["model"] for seed in (0, 1)] == digests[:1] * 2
    assert len({made(one, "mine", adapters(seed))["model"] for seed in (0, 1)} | set(digests)) == 4
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(config | {"use_cache": True, "transformers_version": "9"}))
    assert made(one)["model"] == digests[0], "keys that the decoder does not read"


@pytest.mark.parametrize(
    "name, change", [("chat_template.jinja", "Answer in French."), ("generation_config.json", '{"eos_token_id": 5}')]
)
def test_a_prompt_and_the_end_tokens_are_known_by_what_they_are(tmp_path, name, change):
    """A template that was edited between two seeds makes other prompts of the same problems."""
    folder = tiny.build(tmp_path / "model", vocab_size=300, **SMALLEST)
    before = made(folder)
    (folder / name).write_text(change)
    after = made(folder)
    assert provenance.differences(before, after) == ["tokens"]


def test_seeds_that_begin_on_two_days_are_of_one_arm(tmp_path):
    """Where the template tells the date, each has the prompts of its own day."""
    folder = tiny.build(tmp_path / "model", vocab_size=300, **SMALLEST)
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %B %Y') }} {{ messages[0].content }}")
    model, tokenizer = load_model(folder, "float32", "cpu")
    found = []
    for day in (1, 2):
        tokenizer.now = datetime(2026, 1, day)
        found.append(provenance.made_with(model, tokenizer, Settings().decided(), 1))
    assert found[0] == found[1]


def test_an_edited_config_of_a_run_is_refused_on_resume(checkpoint, tmp_path, capsys):
    """Flags are; half of the run would be of other settings, and be reported as if all were."""
    out = tmp_path / "out"
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(out)]) == 0
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"lr": 0.5}))
    capsys.readouterr()
    assert train.main(["--out", str(out), "--resume", "--steps", "2"]) == 2
    assert f"{out / 'config.json'} was edited" in capsys.readouterr().err
    (out / "config.json").write_text(json.dumps(settings))
    assert train.main(["--out", str(out), "--resume", "--steps", "2"]) == 0


def test_a_run_that_has_saved_nothing_goes_on_with_the_model_that_is_there_and_says_so(checkpoint, tmp_path, recwarn):
    """It was killed in its first evaluation, and --model names a folder that another run writes to."""
    out, folder = tmp_path / "out", Path(shutil.copytree(checkpoint, tmp_path / "model"))
    assert train.main([*FLAGS, "--steps", "0", "--model", str(folder), "--out", str(out)]) == 0
    for path in (*out.glob("checkpoint*"), out / "metrics.jsonl", out / "samples.jsonl"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    model = Decoder.from_pretrained(folder)
    model.lm_head.weight.data *= 2
    model.save_pretrained(folder)
    assert train.main(["--out", str(out), "--resume", "--steps", "1"]) == 0
    assert any(f"{out}: the run continues with other model than" in str(w.message) for w in recwarn.list)


def test_a_measurement_of_other_code_is_made_again(checkout, checkpoint):
    """Who edits how a bypass is fitted must not be given the old one, cached beside the model."""
    model = Decoder.from_pretrained(checkpoint)
    stamps = [nested.fingerprint(model)]
    for name in ("reward.py", "skip.py", "nested.py"):
        append(checkout / name)
        stamps.append(nested.fingerprint(model))
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3
