"""Specification of the command line under wrong input: one line that says what is wrong, the exit status, no traceback.

2 is for what the user gave, 1 for what the machine lacks; argparse, which prints its usage first, exits with 2 too.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST

import bench
import data
import evaluate
import look
import train
from data import svamp
from docs import tiny
from support import distributed
from support.settings import GROUPS, REMOVED, Settings, with_whole_paths

RECORD = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}
CONTEXT = 256


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """A wrong model name is looked up in a hub that is offline, a data set in an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny"), vocab_size=300, max_position_embeddings=CONTEXT, **SMALLEST)


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


@pytest.fixture
def problems(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        record = RECORD | {"question": f"{RECORD['question']} ({split})"}
        (folder / f"gsm8k_{split}.jsonl").write_text(json.dumps(record) + "\n")
    return folder


REMARKS = ("the published file has", "no --model")  # what may be printed before an error


@pytest.fixture
def complaint(checkpoint, problems, tmp_path, capsys):
    """A function that runs a script whose flags are right but for those given, and returns the error's line.

    Such a run must end before it has written anything.
    """

    def run(script, *wrong, status=2):
        out = tmp_path / "out"
        right = {
            "--model": checkpoint,
            "--dataset": "gsm8k",
            "--data-dir": problems,
            "--max-new-tokens": 4,
            "--out": out,
        }
        arguments = [str(argument) for flag in right.items() for argument in flag] + [str(flag) for flag in wrong]
        try:
            returned, remarks = script.main(arguments), REMARKS
        except SystemExit as error:  # of argparse, which prints its usage first
            returned, remarks = error.code, ("",)
        printed = capsys.readouterr()
        *before, line = printed.err.splitlines()
        assert returned == status and printed.out == "", printed
        assert all(any(remark in other for remark in remarks) for other in before), printed.err
        assert not out.exists()
        return line

    return run


# Wrong flags


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("--dataset", "svmap", "svamp, gsm8k, math12k, arith"),
        ("--skip-ratio", "1.5", "from 0 to 1"),
        ("--skip-ratio", "-0.1", "from 0 to 1"),
        ("--skip-ratio", "auto", "in its place: a share, such as 0.2"),
        ("--grader", "sympy", "rules, math-verify"),
        ("--bypass", "median", "mean, identity; did you mean mean?"),
        (
            "--gradient",
            "reinforce",
            "on-policy, is, is-sequence, is-prefix, is-geometric, retrace, retrace-token",
        ),
        ("--advantage", "gae", "grpo, mean, rloo"),
        ("--normaliser", "zero", "tokens, completions or a positive number"),
        ("--retrace-lambda", "2", "from 0 to 1"),
        ("--cap", "-1", "0 or more"),
        ("--samples", "1", "2 or more"),
        ("--prompts", "0", "1 or more"),
        ("--max-new-tokens", "0", "1 or more"),
        ("--micro-batch-tokens", "0", "1 or more"),
        ("--eval-every", "0", "1 or more"),
        ("--temperature", "0", "0.01 or more"),
        ("--steps", "1.5", "invalid int"),
        ("--lr", "nan", "0 or more"),
        ("--lr", "abc", "invalid float"),
        ("--seed", "-1", "from 0 to 2147483647"),
        ("--seed", str(2**32), "from 0 to 2147483647"),
        ("--dtype", "float8", "float32, bfloat16"),
        ("--eval-split", "dev", "test, valid"),
        ("--measure-every", "0", "1 or more"),
        ("--device", "gpu", "cuda"),
        ("--valid-layers", "nonsense", "border:K or a list such as 2,5,8-11"),
        ("--valid-layers", "2,9", "from 0 to 3"),
        ("--valid-layers", "border:-1", "0 or more"),
        ("--valid-layers", "border:99", "leaves none"),
        ("--prompt-template", "Q: {queston}", "{question}"),
        *(
            (flag, b"run-\xff{question}".decode(errors="surrogateescape"), "a text in UTF-8")
            for flag in ("--out", "--model", "--dataset", "--adapter", "--prompt-template")
        ),
    ],
    ids=ascii,
)
def test_a_wrong_value_is_named_with_what_was_expected(complaint, flag, value, expected):
    """Most wrong values would otherwise be noticed hours later, in a loss that is not what was asked for."""
    line = complaint(train, flag, value)
    assert (value in line or repr(value)[1:-1] in line) and expected in line
    assert flag.strip("-").replace("-", " ") in line.replace("-", " ")


@pytest.mark.parametrize(
    "scripts, flag, typed, meant",
    [
        ([train], "--gradient", "is-sequnce", "is-sequence"),
        ([train], "--eval-split", "tests", "test"),
        ([train, look], "--bound", "truncated", "truncate"),
        ([train, look], "--advantage", "GRPO", "grpo"),
        ([train, look, evaluate], "--grader", "math_verify", "math-verify"),
        ([train, look, evaluate, bench], "--dataset", "svmp", "svamp"),
        ([train, look, evaluate, bench], "--dataset", "GSM8K", "gsm8k"),
        ([train, look, evaluate, bench], "--dtype", "bf16", "bfloat16"),
    ],
)
def test_a_choice_that_is_nearly_right_is_answered_with_the_right_one(capsys, scripts, flag, typed, meant):
    """One letter is missing, or it is spelt as elsewhere."""
    for script in scripts:
        assert script.main([flag, typed]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and repr(typed) in said and said.endswith(f"; did you mean {meant}?\n")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--skip-rate", "0.5"], "no such argument: --skip-rate; did you mean --skip-ratio?"),
        (["--skiprat=0.5"], "no such argument: --skiprat; did you mean --skip-ratio?"),
        (["--xyz"], "no such argument: --xyz"),
        (
            ["--is-level", "token"],
            "--is-level; in its place: --gradient is (by token) or is-sequence",
        ),
        (["--layer-dropout", "0.3"], "no such argument: --layer-dropout; in its place: nothing, see docs/log.md"),
    ],
)
def test_a_flag_that_is_not_there_is_refused_with_the_one_that_was_meant(complaint, flags, said):
    """A misspelt flag that was ignored would leave its default in the experiment; one that is gone has a successor."""
    assert complaint(train, *flags).endswith(said)


def test_every_flag_that_is_gone_is_gone():
    """And none that is there is said to be."""
    assert not REMOVED.keys() & {field.name for field in fields(Settings)} and len(fields(Settings)) <= 41


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--cap", "1.5", "--gradient", "retrace"], "--cap is 1.5, but --gradient retrace has none"),
        (["--cap", "0", "--gradient", "on-policy"], "--cap is 0.0, but --gradient on-policy has none"),
        (["--retrace-lambda", "0.9"], "--retrace-lambda is 0.9, but --gradient is-sequence has none"),
        (["--bound", "mask", "--gradient", "retrace"], "--bound is mask, but --gradient retrace has none"),
        (["--bound", "mask", "--cap", "0"], "expected truncate, or mask and a cap above 1"),
        (["--bound", "mask", "--cap", "1"], "the cap 1.0; expected truncate, or mask and a cap above 1"),
    ],
)
def test_a_bound_for_a_gradient_that_has_none_is_refused(complaint, flags, said):
    """It would be taken for a part of the experiment, and change nothing."""
    assert said in complaint(train, *flags)


def test_a_ratio_that_asks_for_more_than_the_valid_layers_names_both_numbers(complaint):
    """D3 must not quietly skip fewer: the ratio on the label would not be the one that was run."""
    line = complaint(train, "--skip-ratio", "0.99", "--valid-layers", "border:1")
    assert "4 of 4 layers" in line and "only 2" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_named(complaint):
    """Falling back to the CPU would be a run a hundred times slower that nobody asked for."""
    assert "'cuda'" in complaint(train, "--device", "cuda")


@pytest.mark.parametrize(
    "environment, said",
    [
        ("WORLD_SIZE=two RANK=0 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500", "WORLD_SIZE=two, RANK=0"),
        ("WORLD_SIZE=2", "WORLD_SIZE=2, no RANK, no LOCAL_RANK, no MASTER_ADDR, no MASTER_PORT"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500", "no LOCAL_RANK"),
        ("WORLD_SIZE=2 RANK=2 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=29500", "WORLD_SIZE=2, RANK=2"),
        ("WORLD_SIZE=0", "WORLD_SIZE=0"),
    ],
)
@pytest.mark.parametrize("script", [train, evaluate])
def test_an_environment_that_is_not_torchrun_s_is_named_with_the_cure(
    complaint, monkeypatch, script, environment, said
):
    """Some schedulers set WORLD_SIZE for programs that join by other means."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # a rank lets rank 0 speak first
    for variable in environment.split():
        monkeypatch.setenv(*variable.split("="))
    line = complaint(script)
    assert said in line and "start them with torchrun, or unset WORLD_SIZE" in line
    assert "did you mean --steps?" in complaint(train, "--stepz", "3"), "the line about a flag needs no group"


@pytest.mark.parametrize("variable", distributed.ENVIRONMENT)
def test_an_empty_variable_is_one_that_is_not_set(monkeypatch, variable):
    """`WORLD_SIZE= python train.py` is how a shell clears it."""
    monkeypatch.setenv(variable, "")
    assert distributed.join("cpu") == "cpu" and distributed.rank() == 0


def test_a_completion_longer_than_the_context_is_refused_before_the_run(complaint):
    """Beyond max_position_embeddings a model was never trained; the first long prompt may come after hours."""
    line = complaint(train, "--max-new-tokens", "5000")
    assert "5000" in line and str(CONTEXT) in line and "--max-new-tokens" in line


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("--problems", "0", "--problems is 0; expected 1 or more"),
        ("--max-new-tokens", "0", "--max-new-tokens is 0; expected 1 or more"),
        ("--batch", "0", "--batch is 0; expected 1 or more"),
        ("--samples", "-1", "--samples is -1; expected 1 or more"),
        ("--temperature", "0", "--temperature is 0.0; expected 0.01 or more"),
        ("--temperature", "nan", "--temperature"),
        ("--split", "dev", "split 'dev': expected one of"),
        ("--dataset", "svmap", "dataset 'svmap': expected one of svamp, gsm8k, math12k, arith, or a file *.jsonl"),
        ("--dtype", "float8", "--dtype is 'float8'; expected one of float32, bfloat16"),
        ("--prompt-template", "Q: {queston}", "'Q: {queston}' has no {question}"),
    ],
)
def test_evaluate_refuses_wrong_values_too(complaint, flag, value, expected):
    """An accuracy of nothing, or of something else than was named, is worse than none."""
    assert expected in complaint(evaluate, flag, value)


def test_evaluate_refuses_completions_longer_than_the_context(complaint):
    """As in training; and what was not evaluated leaves no file of texts."""
    line = complaint(evaluate, "--max-new-tokens", "5000")
    assert "5000" in line and str(CONTEXT) in line


# Wrong files


@pytest.mark.parametrize("script", [train, evaluate])
@pytest.mark.parametrize("model", ["/no/such/folder", "nobody/no-such-model", "no model at all"])
def test_a_model_that_is_neither_a_folder_nor_in_the_hub_is_named(complaint, script, model):
    """The hub's own errors are pages long and speak of repositories, where most often a path was misspelt."""
    line = complaint(script, "--model", model)
    assert line.startswith(f"error: {model}: no such folder") and "config.json" in line


@pytest.mark.parametrize(
    "name, cure",
    [
        ("model.gguf", "transformers (gguf_file=) and save_pretrained"),
        ("model.safetensors", "is a file; expected a folder"),
        ("pytorch_model.bin", "call save_pretrained(FOLDER): it writes safetensors"),
        ("pytorch_model-00001-of-00002.bin", "never read"),
    ],
)
@pytest.mark.parametrize("script", [train, evaluate])
def test_weights_in_another_format_are_refused_with_the_way_out(complaint, checkpoint, script, name, cure):
    """Such files are what many repositories offer first."""
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    model = checkpoint if name.endswith(".bin") else checkpoint / name
    line = complaint(script, "--model", model)
    assert str(model) in line and cure in line


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HEADS_AS_TEXT = '{"model_type": "llama", "num_attention_heads": "2", "hidden_size": 8}'


def without(key):
    def remove(path):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in config.items() if k != key}))

    return remove


@pytest.mark.parametrize("script", [train, evaluate])
@pytest.mark.parametrize(
    "name, spoil, expected",
    [
        ("model.safetensors", cut_in_half, "not a whole safetensors file"),
        ("model.safetensors", Path.unlink, "no such file"),
        ("config.json", cut_in_half, "no JSON"),
        ("config.json", without("num_hidden_layers"), "num_hidden_layers is missing"),
        ("config.json", without("model_type"), "implemented are llama, qwen2, qwen3"),
        ("tokenizer.json", cut_in_half, "not a tokenizer"),
        ("tokenizer.json", Path.unlink, "no such file"),
        ("config.json", "[]", ""),
        ("config.json", HEADS_AS_TEXT, "num_attention_heads"),
    ],
)
def test_a_broken_checkpoint_file_is_named(complaint, checkpoint, script, name, spoil, expected):
    """Downloads stop half-way and configurations are edited by hand; weights left random would train all the same."""
    if isinstance(spoil, str):
        (checkpoint / name).write_text(spoil)
    else:
        spoil(checkpoint / name)
    line = complaint(script)
    assert str(checkpoint / name) in line and expected in line


def test_a_checkpoint_without_config_is_not_looked_up_elsewhere(complaint, checkpoint):
    """The folder exists, so that is what was meant."""
    (checkpoint / "config.json").unlink()
    assert str(checkpoint / "config.json") in complaint(train)


def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(complaint, checkpoint, tmp_path):
    """Its last tokens have no embedding: an index error in the middle of a run, or worse on a GPU."""
    larger = tiny.build(tmp_path / "larger", vocab_size=320, **SMALLEST)
    shutil.copy(larger / "tokenizer.json", checkpoint)
    line = complaint(train)
    assert str(checkpoint) in line and "320" in line and "300" in line


@pytest.mark.parametrize("script", [train, evaluate])
def test_a_broken_line_of_data_is_named(complaint, problems, script):
    """test_data.py has the many ways; here that the scripts pass the message on."""
    with (problems / "gsm8k_test.jsonl").open("a") as file:
        file.write('{"question": "cut of')
    assert f"{problems / 'gsm8k_test.jsonl'}, line 2" in complaint(script)


@pytest.mark.parametrize("script", [train, evaluate])
def test_math_verify_where_it_is_not_installed_says_how(complaint, script, monkeypatch):
    """It is no requirement; who asks for it is told, before a model has answered anything."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install math-verify" in complaint(script, "--grader", "math-verify")


def test_a_warm_up_on_problems_without_solutions_is_refused(complaint, tmp_path):
    """It would teach to end at once."""
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"question": f"What is {i} + 1?", "answer": i + 1}) + "\n" for i in range(99)))
    line = complaint(train, "--dataset", own, "--warmup-epochs", "1")
    assert "--warmup-epochs is 1" in line and "have no solution" in line


@pytest.mark.parametrize("script", [train, evaluate])
def test_a_data_folder_without_the_file_is_named(complaint, problems, script):
    """And nothing is downloaded in its place."""
    assert str(problems / "svamp.json") in complaint(script, "--dataset", "svamp")


# Where to write


def test_a_folder_that_holds_a_model_is_not_written_to(checkpoint, capsys):
    """A run has a config.json too, and would leave the model without its own."""
    before = (checkpoint / "config.json").read_bytes()
    assert train.main(["--model", str(checkpoint), "--dataset", "arith", "--out", str(checkpoint)]) == 2
    assert f"--out {checkpoint} holds a model" in capsys.readouterr().err.splitlines()[-1]
    assert (checkpoint / "config.json").read_bytes() == before


def test_a_folder_called_like_a_data_set_is_not_that_data_set(tmp_path, monkeypatch):
    """--out svamp leaves one."""
    (tmp_path / "svamp").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_whole_paths({"dataset": "svamp", "model": "svamp"}) == {
        "dataset": "svamp",
        "model": str(tmp_path / "svamp"),
    }


def test_a_folder_that_holds_a_run_is_not_written_to(checkpoint, problems, tmp_path, capsys):
    """Hours of training must survive an arrow-up and return."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text("hours of training\n")
    assert train.main(["--model", str(checkpoint), "--data-dir", str(problems), "--out", str(out)]) == 2
    assert f"--out {out} already holds a run" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in out.iterdir()] == ["metrics.jsonl"]
    assert (out / "metrics.jsonl").read_text() == "hours of training\n"


@pytest.mark.parametrize("script", [train, evaluate])
def test_a_place_below_a_file_is_named(complaint, checkpoint, script):
    """Nothing can be written there; it has to be said before the work and not after."""
    out = checkpoint / "config.json" / "below"
    assert str(out) in complaint(script, "--out", out)


@pytest.mark.parametrize("out", [("."), "absent/texts.jsonl"])
def test_evaluate_says_before_the_work_that_it_cannot_write(complaint, tmp_path, monkeypatch, out):
    """The texts are written last; an hour of sampling would be lost."""
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail("worked first"))
    assert str(tmp_path / out) in complaint(evaluate, "--out", tmp_path / out)


def test_evaluate_does_not_write_over_the_data_set(complaint, tmp_path):
    """An arrow-up and a slip: the file that was asked about would hold the answers."""
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"question": "Two and two?", "answer": 4}) + "\n")
    before = own.read_text()
    assert str(own) in complaint(evaluate, "--dataset", own, "--out", own)
    assert own.read_text() == before


def test_the_home_of_nobody_is_a_folder_that_is_not_there(complaint):
    """A shell leaves ~nobody as it is, and so do we."""
    assert "~no-such-user/x.jsonl: no such file" in complaint(train, "--dataset", "~no-such-user/x.jsonl")


def test_a_refused_run_without_a_model_leaves_no_folder(complaint):
    """A runs/ full of folders without a run hides the others."""
    complaint(train, "--model", "", "--skip-ratio", "0.99", "--valid-layers", "border:1")


# The machine's fault


def test_a_failed_download_exits_with_1(complaint, monkeypatch):
    """A script around this one may try again on 1, and never needs to on 2."""
    monkeypatch.setattr(svamp, "SOURCE", replace(svamp.SOURCE, url="http://127.0.0.1:1/SVAMP.json"))
    line = complaint(train, "--dataset", "svamp", "--data-dir", "", status=1)
    assert "http://127.0.0.1:1/SVAMP.json" in line and "--dataset arith" in line


# For real


def test_the_process_itself_prints_one_line_and_exits_with_2(tmp_path):
    """What the calls above cannot see: that main's status becomes the process's, and imports print nothing."""
    records = "".join(json.dumps({"question": f"{i}?", "answer": i}) + "\n" for i in range(600))
    (tmp_path / "own.jsonl").write_text(records)  # read in no time
    command = [sys.executable, "train.py", "--model", tmp_path / "absent", "--dataset", tmp_path / "own.jsonl"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=Path(train.__file__).parent, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"error: {tmp_path / 'absent'}: ")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "report.py", "look.py", "bench.py"])
def test_ctrl_c_during_the_imports_is_one_line(tmp_path, script):
    """Torch takes seconds, in which a mistyped flag is noticed. Here it takes a minute."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, script], cwd=Path(train.__file__).parent, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n" and process.returncode == 130


def test_help_names_every_setting_with_its_choices_and_default(capsys):
    """For most readers it is the list of what can be varied; argparse fails on a stray % only here."""
    with pytest.raises(SystemExit) as exit:
        train.main(["--help"])
    assert exit.value.code == 0
    help = " ".join(capsys.readouterr().out.split())
    for field in fields(Settings):
        choices = field.metadata["choices"]
        value = f" {{{','.join(choices)}}}" if choices else " X" * (field.type is not bool)
        assert f"--{field.name.replace('_', '-')}{value} " in help
        assert field.metadata["help"] in help
    groups = [help.index(f"{title}: --") for title in GROUPS.values()]
    assert groups == sorted(groups), "nested models and correction come first"
    assert ", ".join(data.DATASETS) in help and "(default: 0.3)" in help
