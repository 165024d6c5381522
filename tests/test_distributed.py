"""Specification of several processes: one run, whatever their number; and nobody waits for the dead.

Each test starts `torchrun` with gloo on the CPU, as a user does; it is compared with one process. All have one thread.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import small_model
from safetensors.torch import load_file

import rollout as rollout_module
import train
from docs import tiny
from model import Decoder
from rollout import Rollout, generate, joined
from support import distributed
from support.distributed import all_reduce, gathered, local_shard, reduce_scatter, shard
from support.optimizer import Optimizer
from support.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FLAGS = "--device cpu --steps 3 --prompts 5 --samples 3 --max-new-tokens 6 --lr 0.001 --eval-every 2 --eval-problems 4"
FLAGS = [*FLAGS.split(), *"--save-every 2 --skip-ratio 0.5 --measure-every 2".split()]
EASY = """
import sys
import data, run, train
load = data.load
data.load = lambda *given: load(*given)[:60]
run.make_grader = lambda name: lambda completion, problem: len(completion) % 2 == 0
{}
sys.exit(train.main())
"""
FAILING = """
original, calls = train.update, []
def update(*given, **more):
    calls.append(1)
    if len(calls) == 4 and run.distributed.rank() == {rank}:
        raise {error}
    return original(*given, **more)
train.update = update
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """train.py with a reward that a random model earns now and then."""
    path = tmp_path_factory.mktemp("script") / "easy.py"
    path.write_text(EASY.format(""))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, tied in (("tied", True), ("untied", False)):
        tiny.build(folder / name, vocab_size=300, max_position_embeddings=512, **SIZES)
        config = replace(Decoder.from_pretrained(folder / name).config, tie_word_embeddings=tied)
        torch.manual_seed(0)
        Decoder(config).save_pretrained(folder / name)
    return folder


def start(ranks: int, script: Path, *arguments, **streams) -> subprocess.Popen:
    """The script on so many processes, of one thread each; on one without torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *torchrun, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **streams)


def run(ranks: int, script: Path, *arguments) -> str:
    process = start(ranks, script, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    """The largest of the tensors' differences, each relative to its tensor."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(((a[k].double() - b[k].double()).norm() / a[k].double().norm()).item() for k in a)


def lines(out: Path) -> list[dict]:
    """metrics.jsonl without the clock, whose every figure is known to rounding."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


def samples(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


EXACT = (
    "phase",
    "step",
    "reward",
    "stepped",
    "skipped_layers",
    "zero_variance_groups",
    "unfinished",
    "mean_length",
    "tokens",
)


def assert_same_run(out: Path, reference: Path) -> None:
    """The invariance: texts, rewards and counts equal, all other figures and the weights to rounding."""
    for sample, expected in zip(samples(out), samples(reference), strict=True):
        for key in sample.keys() & {"log_eta", "log_pi"}:
            assert sample.pop(key) == pytest.approx(expected.pop(key), abs=1e-4)
        assert sample == expected
    for row, expected in zip(lines(out), lines(reference), strict=True):
        assert [row[key] for key in EXACT] == [expected[key] for key in EXACT]
        for key, value in expected.items():
            assert row[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key
    assert difference(out, reference) < 5e-6  # AdamW scales a gradient of rounding's size up to a whole step


RUNS = {  # ranks, the model, more flags
    "2, importance weights": (2, "tied", []),
    "3, retrace, untied": (3, "untied", "--gradient retrace".split()),
    "2, the whole sequence, no bypass": (2, "untied", "--gradient is-sequence --bypass identity".split()),
    "3, on-policy, checkpointing": (3, "tied", "--gradient on-policy --gradient-checkpointing".split()),
    "2, retrace by token, a warm-up": (2, "tied", "--gradient retrace-token --warmup-epochs 1".split()),
    "5, a prompt each": (5, "tied", []),
    "3, adapters of rank 1": (3, "untied", "--lora-rank 1".split()),  # rows of A for one process alone
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_several_processes_is_the_run_on_one(models, script, tmp_path, name):
    """In float32, from the first sample to the last weight; rank 0 alone speaks."""
    ranks, model, flags = RUNS[name]
    one, several = (
        run(n, script, "--model", models / model, *FLAGS, *flags, "--out", tmp_path / str(n)) for n in (1, ranks)
    )
    assert_same_run(tmp_path / str(ranks), tmp_path / "1")
    assert any(row["stepped"] for row in lines(tmp_path / "1") if row["phase"] == "reinforce"), "else nothing was shown"
    assert several.count("step 3/3  reward") == one.count("step 3/3  reward") == 1


UPDATE = """
import sys, torch
from pathlib import Path
from losses import group_advantages
from model import Decoder
from rollout import generate
from support import distributed
from support.optimizer import Optimizer
from support.settings import Settings
import train
device = distributed.join("cpu")
model = Decoder.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
rollout = generate(model, [[5, 6], [7, 8, 9], [10]], 2, 6, [0], seed=1)
if sys.argv[3] == "write":
    torch.save(vars(rollout), sys.argv[2])
rollout = type(rollout)(**torch.load(sys.argv[2]))
optimizer = Optimizer(model)
advantages = group_advantages(torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])).flatten()
for step in range(3):
    train.update(model, optimizer, rollout, advantages, Settings(micro_batch_tokens=1), 1e-3)
if distributed.rank() == 0:
    model.save_pretrained(sys.argv[4])
distributed.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_in_bfloat16_the_update_of_one_rollout_is_the_same(models, tmp_path, ranks):
    """A product's rounding depends on its shape, so a sampled token may differ; the update of one Rollout does not.

    One completion a pass on any number of ranks; with 3, more ranks than groups that have a signal.
    """
    script = tmp_path / "update.py"
    script.write_text(UPDATE)
    for n, mode in ((1, "write"), (ranks, "read")):
        run(n, script, models / "tied", tmp_path / "rollout.pt", mode, tmp_path / str(n) / "checkpoint")
    assert difference(tmp_path / str(ranks), tmp_path / "1") < 1e-3, "half of the spacing of bfloat16 is 2e-3"


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, before, after",
    [("float32", 2, 2), ("float32", 2, 1), ("float32", 1, 2), ("float32", 2, 3)] + [("bfloat16", 2, n) for n in (2, 3)],
)
def test_a_resume_on_as_many_processes_is_exact_and_on_others_the_same_to_rounding(
    models, script, tmp_path, dtype, before, after
):
    """The optimiser's slices are put together and cut anew."""
    flags = ["--model", models / "tied", *FLAGS, "--dtype", dtype]
    run(before, script, *flags, "--out", tmp_path / "whole", "--steps", 4)
    run(before, script, *flags, "--out", tmp_path / "parts", "--steps", 2)
    run(after, script, "--out", tmp_path / "parts", "--resume", "--steps", 4)
    exact = difference(tmp_path / "parts", tmp_path / "whole")
    assert exact == 0 if before == after else exact < (1e-6 if dtype == "float32" else 1e-3)
    if before == after or dtype == "float32":
        rewards = [[row["reward"] for row in lines(tmp_path / name) if row["phase"] == "reinforce"] for name in
                   ("whole", "parts")]  # fmt: skip
        assert rewards[0] == rewards[1]
    shards = sorted(path.name for path in (tmp_path / "parts/checkpoint/training/optimizer").iterdir())
    assert len(shards) == after and all(name.endswith(".safetensors") for name in shards)


@pytest.mark.slow
def test_all_fall_back_together_where_a_checkpoint_is_broken_and_a_measurement_cannot_be_kept(models, script, tmp_path):
    """One rank that went on alone would wait for the others for ever."""
    model = Path(shutil.copytree(models / "tied", tmp_path / "model", ignore=shutil.ignore_patterns("nested")))
    (model / "nested").write_text("a file where a folder has to be")
    flags = ["--model", model, *FLAGS, "--steps", 4]
    said = run(2, script, *flags, "--out", tmp_path / "whole")
    assert said.count("cannot be kept beside the model") == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "checkpoint" / "model.safetensors").write_bytes(b"x")
    said = run(2, script, "--out", tmp_path / "cut", "--resume")
    assert said.count(f"continuing from {tmp_path / 'cut' / 'checkpoint-2'}") == 1
    assert difference(tmp_path / "cut", tmp_path / "whole") == 0


@pytest.mark.slow
def test_evaluation_shares_out_the_problems(models, tmp_path):
    """evaluate.py's texts are those of one process, in their order; so is the accuracy, said once."""
    said = []
    for n in (1, 3):
        flags = ["--model", models / "tied", "--dataset", "arith", "--problems", 7, "--samples", 2, "--batch", 6]
        said.append(run(n, ROOT / "evaluate.py", *flags, "--max-new-tokens", 5, "--out", tmp_path / f"{n}.jsonl"))
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "3.jsonl").read_text() != ""
    assert said[1].count("accuracy") == 1 and said[0].splitlines()[0] in said[1]


@pytest.mark.slow
def test_fewer_prompts_than_processes_are_refused_with_both_numbers_once(models, script, tmp_path):
    """A rank without a prompt would have nothing to sample."""
    process = start(
        3, script, "--model", models / "tied", *FLAGS, "--prompts", 2, "--out", tmp_path / "out",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and said.count("error: --prompts is 2, for 3 processes") == 1


@pytest.mark.slow
def test_a_wrong_flag_is_said_once(script, tmp_path):
    """And not by each process."""
    process = start(3, script, "--stepz", 3, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and said.count("no such argument: --stepz; did you mean --steps?") == 1


FAILURES = {
    "an exception on rank 1": "RuntimeError('a bug')",
    "no memory left on rank 0": "MemoryError()",
    "no memory left on rank 1": "MemoryError()",
    "numbers that are not finite on rank 1": "FloatingPointError('the loss is not finite')",
}


def wait_for(path: Path, text: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < end, f"no {text!r} in {path}"
        time.sleep(0.05)


def workers(process: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, by rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return sorted(int(pid) for pid in listed.split())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks ps for the children of a process")
@pytest.mark.parametrize("death", ["SIGTERM to torchrun", "SIGKILL of rank 1", *FAILURES])
def test_nobody_waits_for_the_dead_and_a_whole_checkpoint_is_left(models, script, tmp_path, death):
    """Whatever ends one process ends all within torchrun's grace of 30 seconds; a resume then goes on."""
    out, path = tmp_path / "out", script
    if death in FAILURES:
        path = tmp_path / "failing.py"
        path.write_text(EASY.format(FAILING.format(rank=death[-1], error=FAILURES[death])))
    flags = ["--model", models / "tied", *FLAGS, "--steps", 400, "--eval-every", 1000, "--out", out]
    process = start(2, path, *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(out / "metrics.jsonl", '"step": 3')
    begun = time.monotonic()
    if death == "SIGTERM to torchrun":
        process.send_signal(signal.SIGTERM)
    elif "SIGKILL" in death:
        os.kill(workers(process)[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=90)
    assert process.returncode != 0 and time.monotonic() - begun < 45
    state = json.loads((out / "checkpoint" / "training" / "state.json").read_text())
    last = [row["step"] for row in lines(out) if row["phase"] == "reinforce"][-1]
    saved = (last,) if "SIGTERM" in death else (last - last % 2, last - last % 2 - 2)  # it may have died while saving
    assert state["step"] in saved
    assert said.count("error: ") == ("memory" in death or "finite" in death), "one message, not one a rank"
    again = start(2, script, "--out", out, "--resume", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(out / "metrics.jsonl", f'"step": {last + 2}')
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=90)


# On one process


def test_on_one_process_every_function_is_the_identity():
    """A reader with one GPU may skip the file."""
    x, items = torch.arange(3.0), [3, 1, 2]
    assert distributed.join("cpu") == "cpu" and distributed.single_process() and distributed.world_size() == 1
    for same in (shard, reduce_scatter, gathered, local_shard, all_reduce):
        assert same(x) is x
    assert distributed.all_reduce(0.1) == 0.1
    assert items[distributed.share(3)] == items and distributed.deal(items, [1, 2, 3]) == items
    assert distributed.all_gather(items) == [items] and distributed.from_rank_0(lambda: items) is items
    assert distributed.anyone(True) is True and distributed.anyone(False) is False
    assert distributed.balanced(2048, 10) == 2048


@pytest.fixture
def second(monkeypatch):
    """This process as the second of two, which hears what a test says the first has sent."""
    monkeypatch.setattr(distributed, "MESH", [None])
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    return monkeypatch


def test_what_the_first_process_makes_is_taken_and_not_made_again(second):
    """A grader with a time limit may say yes to one and no to another."""
    second.setattr(distributed.dist, "broadcast_object_list", lambda items, src: items.__setitem__(0, ("of", src)))
    assert distributed.from_rank_0(lambda: pytest.fail("made by the second")) == ("of", 0)


def test_a_gradient_is_the_sum_of_all_processes_and_not_their_mean(second):
    """Z is the whole batch's, on each of them."""
    asked = []

    class Recorded:
        def redistribute(self, mesh, placements):
            asked.append(placements)

    second.setattr(distributed.DTensor, "from_local", lambda x, mesh, placed, **_: asked.append(placed) or Recorded())
    distributed.reduce_scatter(torch.ones(2))
    assert asked == [[distributed.Partial("sum")], [distributed.Shard(0)]]


def test_an_update_adds_up_what_the_processes_have(monkeypatch):
    """Its loss, its ratios and its entropy; each process has them of its own micro-batches, and 0 elsewhere."""
    model = small_model(torch.float32)
    rollout = generate(model, [[1, 2], [3]], 2, 6, [0], skip=(False, True, True, False), seed=0)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])

    def update():
        return train.update(model, Optimizer(model), rollout, advantages, Settings(), lr=0.0)

    figures, log_rho = update()
    monkeypatch.setattr(train, "all_reduce", lambda x: x * 2)
    doubled, twice = update()
    assert torch.equal(twice, 2 * log_rho)
    for name in ("loss", "entropy", "k1", "max_abs_log_ratio"):
        assert doubled[name] == pytest.approx(2 * figures[name], rel=1e-5), name


@pytest.mark.parametrize("full_prefill", [False, True])
def test_each_process_samples_as_one_would(monkeypatch, full_prefill):
    """With the mask, the temperature, and the reader of the prompts that were asked for."""
    model, how = small_model(), {"skip": (False, True, True, False), "full_prefill": full_prefill, "temperature": 0.7}
    alone = generate(model, [[1, 2], [3]], 2, 6, [0], seed=3, **how)
    monkeypatch.setattr(rollout_module, "single_process", lambda: False)
    again = generate(model, [[1, 2], [3]], 2, 6, [0], seed=3, **how)
    assert all(torch.equal(getattr(again, name), x) for name, x in vars(alone).items() if name != "prompts")


def test_each_process_draws_from_the_streams_of_its_own_prompts(monkeypatch):
    """The second of two samples what one process would have sampled for these prompts, and not for the first."""
    model, prompts = small_model(), [[1, 2], [3], [4, 5]]
    alone = generate(model, prompts, 2, 6, [0], seed=3)
    monkeypatch.setattr(rollout_module, "single_process", lambda: False)
    monkeypatch.setattr(rollout_module, "share", lambda n: slice(1, n))
    second = generate(model, prompts, 2, 6, [0], seed=3)
    width = second.tokens.shape[1]
    assert second.prompts == alone.prompts[2:] and torch.equal(second.tokens, alone.tokens[2:, :width])


def test_work_is_dealt_dearest_first_to_who_has_the_least(monkeypatch):
    """Costs 7, 5, 4, 3, 1 for two: 7 + 3 and 5 + 4 + 1."""
    items, costs, parts = list("abcde"), [3, 7, 1, 5, 4], []
    monkeypatch.setattr(distributed, "MESH", [None])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.deal(items, costs))
    assert parts == [["a", "b"], ["c", "d", "e"]]


@pytest.mark.parametrize("n, processes", [(5, 2), (3, 3), (2, 4), (8, 3)])
def test_parts_of_a_rollout_joined_are_the_rollout(monkeypatch, n, processes):
    """Shares stand in a row, leave nothing out and nothing twice; there may be more processes than prompts."""
    whole = generate(small_model(), [[1, 2 + i] for i in range(n)], 3, 12, [0, 12, 20], seed=4)
    monkeypatch.setattr(distributed, "MESH", ["several"])
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    parts, sizes = [], []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        mine = distributed.share(n)
        sizes.append(mine.stop - mine.start)
        rows = slice(3 * mine.start, 3 * mine.stop)
        part = Rollout(*(getattr(whole, field.name)[rows] for field in fields(Rollout)))
        parts.append(part.trimmed() if part.prompts else None)
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1
    again = joined(parts, "cpu")
    assert again.prompts == whole.prompts
    assert all(torch.equal(getattr(again, name), x) for name, x in vars(whole).items() if name != "prompts")
