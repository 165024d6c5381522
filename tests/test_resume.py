"""Nothing lost: a run that is stopped at any moment and resumed is, bit for bit, the run that was never stopped."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from conftest import pay
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import data
import evaluate
import nested
import run as run_module
import train
from model import Decoder
from run import Run, set_up
from support import checkpoint as saving
from support import log, optimizer, pretrained
from support.log import Log
from support.optimizer import Optimizer
from support.settings import parse
from support.signals import Terminated

FLAGS = [
    *"--device cpu --dtype bfloat16 --warmup-epochs 1 --warmup-batch 8 --warmup-lr 0.001 --steps 4".split(),
    *"--prompts 2 --samples 3 --max-new-tokens 4 --lr 0.001 --eval-every 2 --eval-problems 2 --save-every 2".split(),
    *"--skip-ratio 0.5 --measure-every 2".split(),  # a bypass, and a measurement between kills
]


SHARD = "shard-00001-model-00001-of-00001.safetensors"  # torch.distributed.checkpoint's name for one process's part


class Killed(BaseException):
    """What stands for SIGKILL: it passes everything, and nothing is saved after it."""


def easy(monkeypatch) -> None:
    """Twenty problems of each split, and a reward that a random model earns now and then."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: load(*given)[:20])
    pay(monkeypatch, lambda text, p, g: len(text) % 2 == 0)


@pytest.fixture(autouse=True)
def always_easy(monkeypatch):
    easy(monkeypatch)


@pytest.fixture(scope="module")
def whole_run(checkpoint, tmp_path_factory):
    """The same run without a stop, made once."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        easy(monkeypatch)
        assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(out)]) == 0
    lines = [(row["phase"][0], row["step"]) for row in untimed(out)]
    assert lines == [("w", 1), ("w", 2), ("w", 3), ("e", 0), ("r", 1), ("r", 2), ("e", 2), ("r", 3), ("r", 4), ("e", 4)]
    assert any(row["stepped"] for row in untimed(out) if row["phase"] == "reinforce")
    assert (
        nested.read(out / "checkpoint/training/nested.safetensors", Decoder.from_pretrained(out / "checkpoint")).step
        == 3
    )
    return out


def untimed(out: Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def assert_same(out: Path, reference: Path) -> None:
    assert untimed(out) == untimed(reference)
    assert (out / "samples.jsonl").read_bytes() == (reference / "samples.jsonl").read_bytes()
    for name in ("model.safetensors", f"training/optimizer/{SHARD}"):
        one, other = (load_file(folder / "checkpoint" / name) for folder in (out, reference))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    one, other = (folder / "checkpoint" / "training" / "nested.safetensors" for folder in (out, reference))
    assert one.read_bytes() == other.read_bytes(), "what nested models are made from"


def strike(monkeypatch, place, name: str, call: int, error: BaseException, forever: bool = False) -> None:
    """The call-th call of place.name raises, once, or all from then on."""
    calls, original = [], getattr(place, name)

    def struck(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call or (forever and len(calls) > call):
            if isinstance(error, Killed):
                monkeypatch.setattr(Run, "save", lambda run: None)
            raise error
        return original(*arguments, **keywords)

    monkeypatch.setattr(place, name, struck)


MOMENTS = {  # where, and which call: the warm-up has 3 steps and 2 checkpoints, then come step 0 and 4 steps
    "the warm-up's last step": (train, "completion_logprobs", 3),
    "the boundary of the warm-up's last step": (Log, "write", 3),
    "the evaluation before step 1": (evaluate, "evaluate", 4),
    "the completions that nested models are measured on": (nested, "generate", 1),
    "a measurement": (nested, "order_layers", 1),
    "the second measurement": (nested, "order_layers", 2),
    "a rollout": (train, "generate", 2),
    "the full model's rollout at step 2": (train, "compare_with_full", 1),
    "a backward pass": (Optimizer, "collect_gradients", 5),
    "an optimiser's step": (torch.optim.AdamW, "step", 5),
    "the boundary of step 2": (Log, "write", 6),
    "half a line": (log.json, "dumps", 30),
    "the evaluation after step 2": (evaluate, "evaluate", 6),
    "the line of the evaluation after step 2": (Log, "write", 7),
    "the weights' file": (Decoder, "save_pretrained", 4),
    "the optimiser's file": (Optimizer, "save", 3),
    "the measurement's file": (nested, "write_safetensors", 1),
    "the old checkpoint is still there, the new one is whole": (saving.os, "replace", 6),
    "between the two": (saving.os, "replace", 7),
    "the old checkpoint has no name yet": (saving.os, "replace", 8),
    "an old checkpoint's removal": (saving.shutil, "rmtree", 11),
}
FAST = ("the evaluation after step 2", "between the two", "the second measurement")


@pytest.mark.parametrize("moment", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(checkpoint, whole_run, tmp_path, monkeypatch, moment):
    """Weights, moments, metrics, samples and what was measured, with float32 masters beside bfloat16 weights."""
    out = str(tmp_path / "out")
    with monkeypatch.context() as context, pytest.raises(Killed):
        strike(context, *MOMENTS[moment], Killed())
        train.main([*FLAGS, "--model", str(checkpoint), "--out", out])
    assert train.main(["--out", out, "--resume"]) == 0
    assert_same(Path(out), whole_run)
    assert not (Path(out) / "checkpoint.partial").exists()


@pytest.mark.parametrize(
    "moment, error, status",
    [
        pytest.param("the warm-up's last step", KeyboardInterrupt(), 130, marks=pytest.mark.slow),
        ("a measurement", Terminated(), 143),
        ("the full model's rollout at step 2", KeyboardInterrupt(), 130),
        pytest.param("a backward pass", OSError("No space left"), 1, marks=pytest.mark.slow),
        ("the evaluation after step 2", RuntimeError("CUDA out of memory"), 1),
        pytest.param("the second measurement", MemoryError(), 1, marks=pytest.mark.slow),
    ],
)
def test_whatever_ends_a_run_leaves_its_last_boundary(
    checkpoint, whole_run, tmp_path, monkeypatch, capsys, moment, error, status
):
    """Ctrl-C, SIGTERM, want of memory or of room: a step that was begun is dropped, since nothing has changed yet. The
    last lines name the checkpoint, of the last step that was recorded, and the whole command that continues."""
    out = str(tmp_path / "out")
    with monkeypatch.context() as context:
        strike(context, *MOMENTS[moment], error)
        assert train.main([*FLAGS, "--model", str(checkpoint), "--out", out, "--save-every", "1000"]) == status
    *_, saved, command = capsys.readouterr().out.splitlines()
    steps = [("warm-up " * (row["phase"] == "warmup"), row["step"]) for row in untimed(tmp_path / "out")]
    phase, step = steps[-1]
    if (phase, step) == ("warm-up ", 3):
        phase, step = "", 0  # the end of the warm-up
    assert saved == f"checkpoint: {out}/checkpoint (after {phase}step {step})"
    assert command == f"continue with: python train.py --out {out} --resume"
    assert train.main(command.split("train.py ")[1].split()) == 0
    assert_same(tmp_path / "out", whole_run)


ENDS = {  # what is done between a signal and the last line of a run
    "the error is looked at": (run_module, "out_of_memory"),
    "the weights are checked": (Optimizer, "finite"),
    "the state is made": (Run, "state"),
    "files are written": (Decoder, "save_pretrained"),
    "the error is told": (run_module, "report_error"),
    "the command is told": (run_module, "command_to_resume"),
}


PAIRS = [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGUSR1", "SIGTERM")]


@pytest.mark.parametrize("end, first, second", [(end, *pair) for end, pair in zip(ENDS, PAIRS * 2, strict=True)])
def test_a_second_signal_does_not_cut_the_end_of_a_run_short(
    checkpoint, tmp_path, monkeypatch, capsys, end, first, second
):
    """Clusters send SIGTERM twice, or SIGUSR1 before it, and people press Ctrl-C twice: the last boundary is saved and
    said all the same, and the status is that of the first."""
    (place, name), out, sent, generate = ENDS[end], str(tmp_path / "out"), [], train.generate

    def struck(*arguments):
        if sent == [first]:
            sent.append(second)
            signal.raise_signal(getattr(signal, second))
        return original(*arguments)

    def interrupted(*arguments, **keywords):
        if len(drawn := [*Path(out).glob("metrics.jsonl")]) and '"reinforce", "step": 1' in drawn[0].read_text():
            sent.append(first)
            signal.raise_signal(getattr(signal, first))
        return generate(*arguments, **keywords)

    original = getattr(place, name)
    monkeypatch.setattr(place, name, struck)
    monkeypatch.setattr(train, "generate", interrupted)
    status = train.main([*FLAGS, "--model", str(checkpoint), "--out", out, "--save-every", "1000"])
    assert sent == [first, second] and status == 128 + getattr(signal, first)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"checkpoint: {out}/checkpoint (after step 1)",
        f"continue with: python train.py --out {out} --resume",
    ]


def test_a_signal_that_is_raised_in_vain_ends_the_run_at_the_next_boundary(checkpoint, tmp_path, monkeypatch, capsys):
    """What a destructor raises is lost; no later signal may be dropped for its sake."""

    class Mortal:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    collect, mortal = Optimizer.collect_gradients, [Mortal()]
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(Optimizer, "collect_gradients", lambda self: (mortal.clear(), collect(self))[1])
    flags = [*FLAGS, "--warmup-epochs", "0", "--model", str(checkpoint), "--out", str(tmp_path / "out")]
    assert train.main(flags) == 130
    steps = [row["step"] for row in untimed(tmp_path / "out") if row["loss"] is not None]
    assert len(steps) == 1 and f"(after step {steps[0]})" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["the boundary of step 2", pytest.param("half a line", marks=pytest.mark.slow)])
def test_a_line_that_cannot_be_written_makes_no_boundary(checkpoint, whole_run, tmp_path, monkeypatch, moment):
    """A full disk between the optimiser's step and its line: weights without their line are no state to save."""
    out = str(tmp_path / "out")
    with monkeypatch.context() as context:
        strike(context, *MOMENTS[moment], OSError(28, "No space left on device"))
        assert train.main([*FLAGS, "--model", str(checkpoint), "--out", out]) == 1
    assert train.main(["--out", out, "--resume"]) == 0
    assert_same(tmp_path / "out", whole_run)


@pytest.mark.parametrize("stopped_at", ["the evaluation after step 2", None])
def test_a_resume_with_more_steps_is_the_longer_run(checkpoint, whole_run, tmp_path, monkeypatch, stopped_at):
    """Of a run that was stopped, and of one that was complete: the weights are those of a run begun with the larger
    number, the evaluation of the old last step stays, and config.json says the new number."""
    out, short = tmp_path / "out", [*FLAGS, "--model", str(checkpoint), "--steps", "3"]
    with monkeypatch.context() as context:
        if stopped_at:
            strike(context, *MOMENTS[stopped_at], KeyboardInterrupt())
        assert train.main([*short, "--out", str(out)]) == (130 if stopped_at else 0)
    assert train.main(["--out", str(out), "--resume", "--steps", "4"]) == 0
    one, other = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (out, whole_run))
    assert all(torch.equal(one[name], other[name]) for name in one)
    evaluated = [row["step"] for row in untimed(out) if row["phase"] == "evaluate"]
    assert evaluated == ([0, 2, 4] if stopped_at else [0, 2, 3, 4])
    assert json.loads((out / "config.json").read_text())["steps"] == 4


def test_a_run_that_begins_from_a_checkpoint_leaves_the_resume_of_that_alone(stopped, whole_run, tmp_path):
    """What it measures of those weights, with other settings, is kept beside them, not where a resume looks."""
    flags = "--steps 1 --prompts 2 --samples 2 --max-new-tokens 2 --eval-problems 2 --device cpu"
    other = [
        *flags.split(),
        "--skip-ratio",
        "0.25",
        "--model",
        str(stopped / "checkpoint"),
        "--temperature",
        "0.5",
        "--out",
        str(tmp_path / "other"),
    ]
    assert train.main(other) == 0
    assert (stopped / "checkpoint" / "nested" / "measured.safetensors").exists()
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    assert_same(stopped, whole_run)


def test_a_resumed_run_renders_its_prompts_with_the_date_that_it_began_with(stopped):
    """A chat template may ask for the date: the next day, the same problems would be other prompts."""
    state = json.loads((stopped / "checkpoint" / "training" / "state.json").read_text())
    assert set_up({"out": str(stopped)}, resume=True).tokenizer.now == datetime.fromisoformat(state["date"])


def test_a_run_that_is_complete_stays_as_it_is(whole_run, capsys):
    """To resume it prints the report again, and nothing else happens."""
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*") if path.name != "curve.png"}
    assert train.main(["--out", str(whole_run), "--resume"]) == 0
    assert "accuracy" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*") if path.is_file()}
    assert all(after[path] == time for path, time in before.items() if path.name.endswith(("tensors", "config.json")))


def test_the_last_checkpoints_are_kept_and_each_can_be_gone_back_to(checkpoint, whole_run, tmp_path):
    """checkpoint is the last, checkpoint-STEP those before it: whole folders, under the names of their steps."""
    out = tmp_path / "out"
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(out), "--keep", "4", "--save-every", "1"]) == 0
    assert sorted(path.name for path in out.glob("checkpoint*")) == [
        *("checkpoint", "checkpoint-1", "checkpoint-2", "checkpoint-3")
    ]
    assert sorted(path.name for path in whole_run.glob("checkpoint*")) == ["checkpoint", "checkpoint-2"]
    shutil.rmtree(out / "checkpoint")
    os.replace(out / "checkpoint-2", out / "checkpoint")
    assert train.main(["--out", str(out), "--resume"]) == 0
    assert_same(out, whole_run)


def test_older_checkpoints_are_ordered_by_their_steps(tmp_path):
    """Ten comes after nine, and the warm-up before all: the oldest goes first."""
    for phase, step in (("reinforce", 9), ("reinforce", 10), ("warmup", 100), ("reinforce", 2)):
        training = tmp_path / f"checkpoint-{'warmup-' * (phase == 'warmup')}{step}" / "training"
        training.mkdir(parents=True)
        (training / "state.json").write_text(json.dumps({"phase": phase, "step": step}))
    assert [path.name for path in saving.older_checkpoints(tmp_path)] == [
        *("checkpoint-10", "checkpoint-9", "checkpoint-2", "checkpoint-warmup-100")
    ]


def test_a_checkpoint_is_a_folder_that_others_load(whole_run):
    """What a resume needs lies in a folder of its own: servers read every *.safetensors beside config.json."""
    assert [path.name for path in (whole_run / "checkpoint").glob("*.safetensors")] == ["model.safetensors"]
    assert Decoder.from_pretrained(whole_run / "checkpoint").config.num_hidden_layers == 4


@pytest.fixture(scope="module")
def stopped_run(checkpoint, whole_run, tmp_path_factory):
    """A run that was stopped in its second reinforced step, with a checkpoint of the first."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        easy(monkeypatch)
        strike(monkeypatch, train, "generate", 2, KeyboardInterrupt())
        assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(out)]) == 130
    return out


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    return shutil.copytree(stopped_run, tmp_path / "out")


def files(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--lr", "0.5"], "--lr 0.5: the run in .* has 0.001"),
        (["--model", "another"], "--model 'another': the run in"),
        (["--steps", "3"], r"--steps 3: the run in .* has 4.*may be raised"),
        (["--seed", "1"], "--seed 1"),
    ],
)
def test_a_resume_with_another_setting_is_refused(stopped, capsys, flags, said):
    """It would be neither the old run nor a new one; nothing is written."""
    before = files(stopped)
    assert train.main(["--out", str(stopped), "--resume", *flags]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line)
    assert files(stopped) == before


def test_a_resume_with_the_same_settings_said_again_is_the_same(stopped, checkpoint, whole_run):
    """The command line of the shell's history, with --resume at its end."""
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(stopped), "--resume"]) == 0
    assert_same(stopped, whole_run)


def spoil_optimizer(out: Path) -> None:
    path = out / "checkpoint" / "training" / "optimizer" / SHARD
    path.write_bytes(path.read_bytes()[:1000])


def another_model(out: Path) -> None:
    path = out / "checkpoint" / "training" / "optimizer" / SHARD
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: torch.zeros(3) for name in load_file(path)}, path, metadata)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (spoil_optimizer, "not the state of this run's model"),
        (another_model, "not the state of this run's model"),
        (
            lambda out: (out / "checkpoint/training/state.json").write_text('{"format": 5}'),
            "not the state of this run's",
        ),
        (lambda out: (out / "checkpoint/training/state.json").write_text("{"), "not the state of this run's model"),
        (lambda out: (out / "checkpoint/training/state.json").write_text("{}"), "format 1, this one reads 5"),
        (lambda out: (out / "checkpoint/training/nested.safetensors").write_bytes(b"x"), "not a whole measurement"),
        (
            lambda out: (out / "metrics.jsonl").write_text("x" * 10**5),
            "metrics.jsonl, line 1: not the metrics of a run",
        ),
        (
            lambda out: (out / "config.json").write_text('{"is_level": "token"}'),
            "in its place: --gradient is (by token)",
        ),
        (lambda out: (out / "checkpoint/training/state.json").unlink(), "state.json is not there"),
        (lambda out: (out / "metrics.jsonl").write_text(""), "metrics.jsonl: shorter than"),
        (lambda out: (out / "config.json").write_text('{"speed": 3}'), "not the settings of a run"),
        (lambda out: (out / "config.json").write_text("[]"), "not the settings of a run"),
        (lambda out: [shutil.rmtree(path) for path in out.glob("checkpoint*")], "no checkpoint to continue from"),
        (lambda out: (out / "config.json").write_text('{"lr": -1}'), "--lr is -1"),
        (lambda out: (out / "config.json").write_text('{"lr": "fast"}'), "lr is 'fast'"),
        (lambda out: (out / "config.json").unlink(), "no run in"),
        (lambda out: (out / "checkpoint/model.safetensors").write_bytes(b"x"), "model.safetensors"),
    ],
)
def test_a_resume_from_files_that_are_broken_is_one_line_and_changes_nothing(stopped, capsys, spoil, said):
    """Nothing in them is believed unseen, and what is left of the run is not made worse."""
    for older in stopped.glob("checkpoint-*"):
        shutil.rmtree(older)
    spoil(stopped)
    before = files(stopped)
    capsys.readouterr()
    assert train.main(["--out", str(stopped), "--resume"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and said in line
    assert files(stopped) == before


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json"]
    + [f"training/{name}" for name in (f"optimizer/{SHARD}", "nested.safetensors", "state.json")],
)
@pytest.mark.parametrize("left", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_checkpoint_that_a_power_cut_has_ruined_gives_way_to_the_one_before(
    stopped, whole_run, name, left, recwarn, monkeypatch
):
    """The run ends as it would have: what the lost steps were is a function of seed and step."""
    path = stopped / "checkpoint" / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    [warning] = [str(w.message) for w in recwarn if "continuing from" in str(w.message)]
    assert str(stopped / "checkpoint") in warning and warning.endswith(f"continuing from {stopped / 'checkpoint-0'}")
    assert_same(stopped, whole_run)
    assert (stopped / "checkpoint.broken").is_dir(), "else it would be kept in place of a whole one"
    states = [folder / "training" / "state.json" for folder in saving.checkpoints(stopped)]
    assert [json.loads(state.read_text())["step"] for state in states] == [4, 2]


def test_lines_that_a_power_cut_has_lost_are_written_again(stopped, whole_run, recwarn):
    """metrics.jsonl may be shorter than the newest checkpoint counts, but not than the one before."""
    state = json.loads((stopped / "checkpoint-0" / "training" / "state.json").read_text())
    for name, size in state["sizes"].items():
        os.truncate(stopped / name, size)
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    assert any(
        "metrics.jsonl: shorter" in str(w.message) or "samples.jsonl: shorter" in str(w.message) for w in recwarn
    )
    assert_same(stopped, whole_run)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_a_checkpoint_gets_its_name_when_it_is_on_the_disk(stopped, monkeypatch):
    """Else a power cut leaves a folder with the name of a checkpoint and empty files in it."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )

    def renamed(old, new):
        if Path(new).name == "checkpoint":
            whole = {str(path) for path in Path(old).rglob("*")} | {str(old), str(stopped / "metrics.jsonl")}
            assert whole <= set(done)
            done.clear()
        return replace(old, new)

    monkeypatch.setattr(saving.os, "replace", renamed)
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    assert done == [str(stopped)], "and last the folder, which holds the names"


def test_folders_of_the_users_are_left_alone(stopped):
    """`cp -r checkpoint checkpoint-best-1` is how a good model is put aside; so is a name that looks like ours."""
    for name in ("checkpoint-best-1", "checkpoint-7", "checkpoint-warmup-99"):
        shutil.copytree(stopped / "checkpoint", stopped / name)
    (stopped / "checkpoint-3").mkdir()
    (stopped / "checkpoint-3" / "notes.txt").write_text("mine")
    mine = [path for path in stopped.iterdir() if path.name not in ("checkpoint", "checkpoint-0") and path.is_dir()]
    before = {path: files(path) for path in mine}
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    assert len(mine) == 4 and {path: files(path) for path in mine} == before
    made = {path.name for path in stopped.iterdir() if path.is_dir()} - {path.name for path in mine}
    assert made == {"checkpoint", "checkpoint-2"}, "of its own the run keeps two"


def test_a_second_run_in_a_folder_is_refused_while_the_first_runs(stopped, checkpoint, tmp_path, capsys):
    """Two resumes of one run, or two runs of one --out, would write into each other's files."""
    lock, before = saving.claim(stopped), files(stopped)
    assert train.main(["--out", str(stopped), "--resume"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line == f"error: --out {stopped}: another run is writing there; wait for it, or name another"
    assert files(stopped) == before
    lock.release()
    assert train.main(["--out", str(stopped), "--resume"]) == 0

    fresh = tmp_path / "fresh"
    lock = saving.claim(fresh)  # it has written nothing yet
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(fresh)]) == 2
    assert "another run is writing there" in capsys.readouterr().err and files(fresh).keys() == {fresh / ".lock"}
    lock.release()


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_drive_without_locks_is_warned_of_and_written_to(tmp_path, monkeypatch, name):
    """Some network drives have none: a cluster's home folder must not end every run."""
    import fcntl

    def refuse(*_):
        raise OSError(getattr(errno, name), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked|not supported on this filesystem"):  # the latter: filelock's
        saving.claim(tmp_path / "out").release()


def test_a_lock_that_fails_for_another_reason_is_no_warning(tmp_path, monkeypatch):
    """A full disk is one."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(saving.FileLock, "acquire", lambda self: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space"):
        saving.claim(tmp_path / "out")


def test_runs_without_a_name_that_begin_in_one_second_get_two_folders(checkpoint, tmp_path, monkeypatch, capsys):
    """Two seeds started from one line of a shell."""
    monkeypatch.chdir(tmp_path)

    class Noon(run_module.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 31, 12)

    monkeypatch.setattr(run_module, "datetime", Noon)
    monkeypatch.setattr(train, "reinforce", lambda run: None)
    monkeypatch.setattr(train, "warm_up", lambda run: None)
    monkeypatch.setattr(run_module, "print_report", lambda folder: None)
    runs = [set_up(*parse([*FLAGS, "--model", str(checkpoint)], "")) for _ in range(3)]
    names = [run.log.folder.name for run in runs]
    assert names == ["2026-01-31-120000", "2026-01-31-120000_2", "2026-01-31-120000_3"]
    assert all((run.log.folder / "config.json").is_file() for run in runs)


def test_a_folder_of_runs_is_no_place_for_a_run_and_a_run_no_checkpoint(stopped, checkpoint, capsys):
    """`--out runs` would hide the list of runs; `--model runs/x` is short of the checkpoint in it."""
    assert train.main([*FLAGS, "--model", str(checkpoint), "--out", str(stopped.parent)]) == 2
    assert "is a folder of runs, out among them" in capsys.readouterr().err
    assert train.main([*FLAGS, "--model", str(stopped), "--out", str(stopped.parent / "new")]) == 2
    assert f"did you mean {stopped / 'checkpoint'}?" in capsys.readouterr().err


def test_a_resume_says_where_it_goes_on(stopped, capsys):
    """And that a run is complete, which would look like nothing having happened."""
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    assert "continues   after step 1 of 4" in capsys.readouterr().out
    assert train.main(["--out", str(stopped), "--resume"]) == 0
    assert "continues   not: already complete" in capsys.readouterr().out


def test_a_shared_checkpoint_can_be_read_by_a_class(stopped):
    """The umask decides, as for every other file."""
    before = os.umask(0o022)
    try:
        assert train.main(["--out", str(stopped), "--resume"]) == 0
    finally:
        os.umask(before)
    weights = list((stopped / "checkpoint").rglob("*.safetensors"))
    assert len(weights) == 3 and {path.stat().st_mode & 0o777 for path in weights} == {0o644}


def test_paths_of_the_command_line_hold_wherever_a_resume_is_started(checkpoint, tmp_path, monkeypatch):
    """`--dataset my.jsonl`, and a resume from a cron job's folder."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    rows = [{"question": f"{i} and 1?", "answer": i + 1} for i in range(60)]
    (one / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(checkpoint, one / "model")
    monkeypatch.chdir(one)
    flags = "--model model --dataset my.jsonl --data-dir . --steps 1 --prompts 1 --samples 2 --max-new-tokens 2".split()
    flags += "--bypass identity --valid-layers border:1 --skip-ratio 0.2 --eval-problems 1 --device cpu".split()
    assert train.main([*flags, "--out", str(one / "run")]) == 0
    monkeypatch.chdir(other)
    assert train.main(["--out", str(one / "run"), "--resume", "--steps", "2"]) == 0


def test_a_resume_with_other_problems_is_refused(stopped, monkeypatch, capsys):
    """Steps draw problems by their number; of another file they would be others."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda *given: load(*given)[1:])
    assert train.main(["--out", str(stopped), "--resume"]) == 2
    assert "the problems of arith are not those" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--out", "nowhere"]])
def test_a_resume_of_nothing_is_refused(flags, tmp_path, monkeypatch, capsys):
    """A mistyped folder must not begin a new run."""
    monkeypatch.chdir(tmp_path)
    assert train.main(flags) == 2
    assert "--resume" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_another_number_of_threads_is_said(stopped, whole_run):
    """Sums are split among threads, so that their rounding differs: exact no longer, and the user should know."""
    path = stopped / "checkpoint" / "training" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 99}))
    with pytest.warns(UserWarning, match="99 threads"):
        assert train.main(["--out", str(stopped), "--resume"]) == 0


@pytest.mark.parametrize(
    "place, name, error",
    [
        pytest.param(pretrained, "save_file", OSError, marks=pytest.mark.slow),
        (pretrained, "save_file", SafetensorError),
        (optimizer.HuggingFaceStorageWriter, "write_data", OSError),
    ],
)
def test_a_full_disk_keeps_the_checkpoint_before(
    checkpoint, whole_run, tmp_path, monkeypatch, capsys, place, name, error
):
    """One line; and once there is room the run goes on."""
    out = str(tmp_path / "out")
    with monkeypatch.context() as context:
        strike(context, place, name, 3, error("No space left on device"), forever=True)
        assert train.main([*FLAGS, "--model", str(checkpoint), "--out", out]) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err and "(after warm-up step 3)" in captured.out.splitlines()[-2]
    assert not (tmp_path / "out" / "checkpoint.partial").exists(), "room for the next try"
    assert train.main(["--out", out, "--resume"]) == 0
    assert_same(tmp_path / "out", whole_run)


@pytest.mark.slow
def test_sigkill_at_random_moments_of_the_real_process(tmp_path):
    """The embedded model, `python train.py` itself, six times SIGKILL: the same weights and metrics in the end."""
    root = Path(__file__).resolve().parents[1]
    flags = "--steps 8 --prompts 4 --eval-every 3 --eval-problems 20 --save-every 1 --warmup-epochs 1".split()
    flags += "--warmup-batch 100 --bypass linear --measure-every 4 --dtype bfloat16".split()
    problems = data.load("arith", "train")[:400] + data.load("arith", "test")[:20]
    rows = [{"question": problem.question, "solution": problem.rationale} for problem in problems]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags += ["--dataset", str(tmp_path / "problems.jsonl")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(out: str, *more: str) -> subprocess.Popen:
        command = [sys.executable, str(root / "train.py"), *more, "--out", str(tmp_path / out)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    assert start("whole", *flags).wait() == 0
    rng, kills, more = random.Random(0), 0, flags
    while True:
        process, size = start("killed", *more), 0
        metrics = tmp_path / "killed" / "metrics.jsonl"
        began = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and kills < 6:  # it has taken a step of its own: now any moment will do
            size = metrics.stat().st_size if metrics.exists() else 0
            if size != began:
                time.sleep(rng.uniform(0.0, 0.6))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.01)
        if process.wait() == 0:
            break
        more = ["--resume"] if (tmp_path / "killed" / "config.json").exists() else flags
    assert kills >= 5
    assert_same(tmp_path / "killed", tmp_path / "whole")
