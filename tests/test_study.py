"""docs/study.py and docs/comparison.py: runs of several arms and seeds, and what they came to."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from docs import comparison, study
from support.log import METRICS, read
from support.settings import Settings, write_settings


def make(folder, skip_ratio: float, correct: dict[str, list[str]], seconds: float, samples: int = 8) -> None:
    """A run as docs/study.py leaves it: two steps, each of so many seconds."""
    folder.mkdir(parents=True)
    write_settings(Settings(skip_ratio=skip_ratio, gradient="is", samples=samples), folder)
    figures = {
        "reward": 0.5,
        "sequence_acceptance": 0.4,
        "ess": 0.3,
        "zero_variance_groups": 0.25,
        "tokens_per_second": 1 / seconds,
    }
    figures |= {"seconds_sample": seconds / 2, "seconds_grade": 0.0, "seconds_update": seconds / 4}
    rows = [dict.fromkeys(METRICS) | {"phase": "reinforce", "step": step} | figures for step in (1, 2)]
    rows[0]["seconds_measure"] = seconds / 2  # of two steps
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "correct.json").write_text(json.dumps(correct))


@pytest.fixture
def runs(tmp_path):
    """Two arms of two seeds; the second arm's step takes half of the time, so that it may take four."""
    for seed, right in enumerate((["10", "00"], ["11", "00"])):
        make(tmp_path / f"full-{seed}", 0.0, {"2": right}, seconds=4.0)
        make(tmp_path / f"nested-{seed}", 0.3, {"2": ["10", "10"], "4": ["11", "11"]}, seconds=2.0)
    return tmp_path


def test_an_arm_is_held_against_the_first_at_equal_steps_and_at_equal_seconds(runs, capsys):
    """By hand: 25 and 50 % with nothing skipped; 50 % after two steps, 100 % after four."""
    assert comparison.main([str(runs)]) == 0
    full, nested = capsys.readouterr().out.splitlines()[2:]
    assert full.startswith("| full | 4.0 | 37.5 % (25.0, 50.0) |  |  |  | 0.500 | 0.400 | 0.300 | 75%")
    cells = [cell.strip() for cell in nested.split("|")]
    assert cells[2:4] == ["2.0", "50.0 % (50.0, 50.0)"] and cells[4].startswith("+12.5 (")
    assert cells[5] == "100.0 % (100.0, 100.0), 2.00 × the steps" and cells[6].startswith("+62.5 (")


def test_an_interval_is_over_problems_and_over_seeds():
    """Seeds that agree on every problem leave no doubt; seeds that differ do, however many problems there are, and
    problems that differ, however many seeds."""
    same = np.ones((2, 100))
    assert comparison.interval(same, 200) == (1.0, 1.0)
    assert comparison.interval(same * [[1], [-1]], 200) == (-1.0, 1.0)
    low, high = comparison.interval(np.tile([1.0, -1.0], (100, 2)), 200)
    assert low == -1.0 and high == 1.0, "four problems"


def test_an_interval_holds_95_percent():
    """The mean of 400 problems of ±1 has an error of 1/20: 1.96 of them to each side."""
    low, high = comparison.interval(np.tile([1.0, -1.0], (1, 200)), 4000)
    assert (low, high) == (pytest.approx(-0.098, abs=0.006), pytest.approx(0.098, abs=0.006))


def test_a_run_is_evaluated_by_its_own_settings(tmp_path, monkeypatch):
    """However its flags were spelt; a prompt or a grader of its own are not forgotten."""
    s = Settings(
        dataset="svamp", prompt_template="Q: {question}", grader="math-verify", temperature=0.5, dtype="bfloat16"
    )
    tmp_path.joinpath("full-0").mkdir()
    write_settings(s, tmp_path / "full-0")
    calls = []

    def call(command, log):
        calls.append(list(map(str, command)))
        Path(command[-1]).write_text('{"correct": true}\n{"correct": false}\n')

    monkeypatch.setattr(study, "call", call)
    a = argparse.Namespace(split="test", samples=2, problems=1, batch=8, flags=["--dataset=svamp"])
    study.evaluate(a, tmp_path / "full-0", 3)
    [flags] = calls
    given = dict(zip(flags[1::2], flags[2::2], strict=True))
    wanted = {
        "--dataset": "svamp",
        "--prompt-template": "Q: {question}",
        "--grader": "math-verify",
        "--dtype": "bfloat16",
    }
    assert given | wanted | {"--temperature": "0.5", "--samples": "2", "--split": "test"} == given
    assert json.loads((tmp_path / "full-0" / "correct.json").read_text()) == {"3": ["10"]}


def test_a_file_to_test_with_is_no_study_s(tmp_path, capsys):
    """Its problems would not be the ones that are evaluated."""
    assert study.main(["--out", str(tmp_path / "runs"), "--", "--test-file=own.jsonl"]) == 2
    assert "--test-file" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_the_picture_has_a_line_a_gradient(runs):
    """Labelled at its end, in the words that all figures use, with the title that was given."""
    pytest.importorskip("matplotlib", reason="draws the picture")
    assert comparison.main([str(runs), "--out", str(runs / "study.svg"), "--title", "what it shows"]) == 0
    text = (runs / "study.svg").read_text()
    assert text.startswith("<?xml") and "NaN" not in text and "what it shows" in text and "nothing skipped" in text
    make(runs / "nested 4 samples-0", 0.3, {"2": ["00", "00"]}, seconds=1.0, samples=4)
    assert comparison.main([str(runs), "--out", str(runs / "more.svg"), "--title", "what it shows"]) == 0
    more = (runs / "more.svg").read_text()
    assert more.count("<path") == text.count("<path"), "an arm with fewer completions is no point of the line"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda run: (run / "correct.json").write_text("{}"), "correct.json: not what docs/study.py writes"),
        (lambda run: (run / "correct.json").write_text('{"2": ["1"]}'), "different problems"),
        (lambda run: (run / "correct.json").write_text('{"2": ["", "1"]}'), "correct.json: not what"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda run: (run / "config.json").unlink(), "config.json"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_line(runs, capsys, spoil, said):
    """And nothing is printed before it."""
    spoil(runs / "nested-1")
    assert comparison.main([str(runs)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and printed.err.count("\n") == 1


def test_an_arm_or_a_folder_that_is_not_there_is_named(runs, tmp_path, capsys):
    """With what is there."""
    assert comparison.main([str(runs), "--first", "all"]) == 2 and "it has full, nested" in capsys.readouterr().err
    assert comparison.main([str(tmp_path / "none")]) == 2 and "no run of a study" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_cut(tmp_path, capsys, monkeypatch):
    """The embedded model, two arms. The first call fails when it evaluates; the second takes no step again."""
    flags = "--steps 2 --seeds 0 --samples 2 --problems 4 -- --prompts 2 --samples 2 --max-new-tokens 8".split()
    own = ["--out", str(tmp_path / "runs"), "--arms", "full", "0.3 is-sequence"]
    (tmp_path / "runs" / "full-0" / "generated.jsonl").mkdir(parents=True)  # in the way of evaluate.py
    assert study.main([*own, *flags]) == 1 and "full-0.log" in capsys.readouterr().err
    (tmp_path / "runs" / "full-0" / "generated.jsonl").rmdir()
    first = (tmp_path / "runs" / "full-0" / "metrics.jsonl").read_bytes()

    monkeypatch.setattr(study, "seconds", lambda steps: 1.0)  # no arm is faster
    assert study.main([*own, *flags]) == 0
    assert (tmp_path / "runs" / "full-0" / "metrics.jsonl").read_bytes() == first
    for arm in ("full-0", "0.3-is-sequence-0"):
        folder = tmp_path / "runs" / arm
        correct = json.loads((folder / "correct.json").read_text())
        assert list(correct) == ["2"] and [len(each) for each in correct["2"]] == [2] * 4
        assert read(folder)[-1]["step"] == 2 and not (folder / "checkpoint").exists()
    assert comparison.main([str(tmp_path / "runs")]) == 0
