"""The table and the curve that a run ends with, from hand-made metrics."""

import json
import sys

import pytest

import report
from docs import comparison
from support.log import METRICS, readable

BATCH = {"reward": 0.5, "acceptance": 0.8, "acceptance_p5": 0.1, "sequence_acceptance": 0.3, "ess": 0.4}
BATCH |= {"silent_groups": 0.25, "cut_off": 0.0}


def row(step: int, **figures) -> dict:
    return dict.fromkeys(METRICS) | {"phase": "reinforce", "step": step} | figures


def evaluation(step: int, *accuracies: tuple[str, float, float]) -> dict:
    """A line with the sampled and the greedy accuracy of some splits."""
    figures = {"phase": "evaluate"}
    for split, sampled, greedy in accuracies:
        key = f"{split}_accuracy"
        figures |= {key: greedy, f"{key}_se": 0.01, f"{key}_sampled": sampled, f"{key}_sampled_se": 0.02}
    return row(step, **figures)


RUN = [
    evaluation(0, ("test", 0.4, 0.5), ("wordings", 0.1, 0.2)),
    row(1, **BATCH | {"reward": 0.25}),
    row(2, **BATCH, mean_length=10.0, tokens_per_second=3000.0, full_mean_length=20.0, full_tokens_per_second=1500.0),
    evaluation(2, ("test", 0.5, 0.6)),
    row(3, **BATCH | {"reward": 1.0, "acceptance": None}),
    row(4, **BATCH, mean_length=14.0, tokens_per_second=5000.0, full_mean_length=22.0, full_tokens_per_second=2500.0),
    evaluation(4, ("test", 0.65, 0.55), ("wordings", 0.2, 0.2)),
]


def write(folder, rows) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_a_folder_of_runs_is_listed_a_line_each(tmp_path, capsys):
    """`report.py runs` is what one types first; the errno of a missing metrics.jsonl said nothing."""
    for name, rows in (("one", RUN), ("two", RUN[:1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "metrics.jsonl").write_text("{}\n")
    assert report.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(tmp_path / name) for name in ("one", "three", "two")]
    assert (
        "step 4, sampled 40.0% to 65.0%" in lines[0] and "not the metrics of a run" in lines[1] and "step 0" in lines[2]
    )


def test_a_run_that_was_evaluated_once_has_no_accuracy_after():
    """The same figure twice, + 0.0 points, reads as a run that learned nothing."""
    [line] = [line for line in report.table(RUN[:3]).splitlines() if line.startswith("test, greedy")]
    assert line.split() == ["test,", "greedy", "50.0%", "±", "1.0%", "–"]


def test_a_line_of_the_terminal_has_a_hundred_characters_at_most():
    """It stands in a window of a laptop, with 1,000 steps and numbers of their full width."""
    wide = dict.fromkeys(METRICS) | BATCH | {"phase": "reinforce", "step": 1000, "stepped": True, "silent_groups": 0.99}
    wide |= {
        "acceptance": 0.9,
        "acceptance_p5": 0.5,
        "sequence_acceptance": 0.5,
        "mean_length": 1024.0,
        "cut_off": 1.0,
        "tokens_per_second": 12345.6,
    }
    for row in (wide, wide | {"stepped": False, "silent_groups": 1.0}):
        assert len(readable(row, 1000)) <= 100
    assert "no signal" in readable(wide | {"stepped": False}, 1000)
    accuracies = {key: 0.999 for key in METRICS if "accuracy" in key}
    assert len(readable(dict.fromkeys(METRICS) | accuracies | {"phase": "evaluate", "step": 1000}, 1000)) <= 100


def test_the_table_says_before_and_after_nested_and_full_first_and_last():
    """Of the first and the last evaluation; of batches that both models sampled; of the first and the last tenth."""
    lines = [line.split() for line in report.table(RUN).splitlines()]
    assert "test, greedy 50.0% ± 1.0% 55.0% ± 1.0% +5.0 points".split() in lines
    assert "test, sampled 40.0% ± 2.0% 65.0% ± 2.0% +25.0 points".split() in lines
    assert "new wordings, sampled 10.0% ± 2.0% 20.0% ± 2.0% +10.0 points".split() in lines
    assert "sampling, 2 batches nested full".split() in lines
    assert "tokens/s 4,000 2,000 2.00 times".split() in lines
    assert "tokens a completion 12.0 21.0".split() in lines
    assert "batches, the mean of the first 1 the last 1 all 4".split() in lines
    assert "reward 0.250 0.500 0.562".split() in lines
    assert "acceptance 0.800 0.800 0.800".split() in lines, "the mean of what is known"
    assert (
        "acceptance p5 0.100 0.100 0.100".split() in lines and "sequence acceptance 0.300 0.300 0.300".split() in lines
    )
    assert "ess 0.400 0.400 0.400".split() in lines


def test_what_was_not_measured_has_no_line():
    """No wordings but in arith, no comparison where nothing was skipped, no batches where none was sampled."""
    rows = [evaluation(0, ("test", 0.4, 0.5)), row(1, **BATCH)]
    assert "wordings" not in report.table(rows) and "full" not in report.table(rows)
    assert "reward" not in report.table(rows[:1]) and "test, greedy" in report.table(rows[:1])


def test_a_run_that_is_evaluated_on_valid_is_reported_by_that_name():
    """Its accuracy is no figure of the test split."""
    rows = [evaluation(0, ("valid", 0.4, 0.5)), row(1, **BATCH), evaluation(1, ("valid", 0.6, 0.5))]
    assert "valid, sampled 40.0% ± 2.0% 60.0% ± 2.0% +20.0 points" in " ".join(report.table(rows).split())
    assert "test" not in report.table(rows) and report.points(rows)[1] == [(0, 0.4), (1, 0.6)]


def test_the_curve_puts_rewards_and_accuracies_where_they_belong():
    """Step 0 at the left, the last one at the right, 0 at the bottom, the largest value at the top."""
    lines = report.curve(RUN, width=8, height=4).splitlines()
    assert lines[:6] == [
        " 1.00 |      ·",
        "      |        o",  # 0.65 of 1: level 3 of 4
        "      |o   o   ·",  # at step 2 the accuracy hides the reward
        "      |  ·",
        " 0.00 |",
        "      +--------> step 4",
    ]


def test_neighbouring_steps_are_averaged_where_there_are_more_than_columns():
    """A hundred noisy rewards in sixty columns would hide the curve."""
    rows = [evaluation(0, ("test", 0.5, 0.5)), *(row(step, **BATCH | {"reward": step / 10}) for step in range(1, 6))]
    reward, test = report.points(rows, width=3)
    assert [step for step, _ in reward] == [1.5, 3.5, 5.0]
    assert [value for _, value in reward] == pytest.approx([0.15, 0.35, 0.5])
    assert test == [(0, 0.5)]


def test_a_run_that_earned_nothing_is_drawn_at_the_bottom():
    """All zeros have no scale of their own."""
    rows = [evaluation(0, ("test", 0.0, 0.0)), row(1, **BATCH | {"reward": 0.0})]
    assert "· reward" in report.curve(rows)


def test_a_folder_is_reported_with_its_picture(tmp_path, capsys):
    """The same at the end of a run and later; warm-up lines are not part of it."""
    pytest.importorskip("matplotlib", reason="needs matplotlib (requirements-dev.txt)")
    write(tmp_path, [row(1) | {"phase": "warmup"}, *RUN])
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert report.table(RUN) in printed and report.curve(RUN) in printed
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "curve.png") in printed


def test_without_matplotlib_there_is_no_picture_and_a_word_about_it(tmp_path, capsys, monkeypatch):
    """It is an extra: a run must not fail for want of it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write(tmp_path, RUN)
    assert report.main([str(tmp_path)]) == 0
    assert "needs matplotlib" in capsys.readouterr().out and not (tmp_path / "curve.png").exists()


@pytest.mark.parametrize("content", [None, "", "{", "[]\n", "{}\n", '{"phase": "warmup", "step": 1}\n'])
def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys, content):
    """A folder mistyped, a file cut short, a run that is still warming up."""
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "metrics.jsonl" in error and "\n" not in error


# docs/comparison.py: several runs side by side


@pytest.fixture
def two_runs(tmp_path):
    """Two arms of one run each, as train.py and evaluate.py leave them."""
    for name, right in (("full", (True, False)), ("nested", (True, True))):
        folder = tmp_path / name
        folder.mkdir()
        rows = [each | {"acceptance": 0.9, "tokens": 8} if each["phase"] == "reinforce" else each for each in RUN]
        write(folder, rows)
        records = [{"question": f"{i}?", "correct": correct} for i, correct in enumerate(right)]
        (folder / "generated.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return ["--out", str(tmp_path / "new" / "folder"), f"full={tmp_path}/full", f"nested={tmp_path}/nested"]


def test_a_comparison_has_a_row_for_each_arm_and_a_picture(two_runs, tmp_path, capsys):
    """One of two problems right against two: 50 points, of two problems anything from 0 to 100."""
    pytest.importorskip("matplotlib", reason="draws the picture")
    assert comparison.main(two_runs) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].startswith("| full | 50.0 % (50.0) | – |")
    assert rows[1].startswith("| nested | 100.0 % (100.0) | +50.0 (+0.0 … +100.0) |")
    assert (tmp_path / "new" / "folder" / "comparison.svg").is_file()


def test_a_comparison_without_matplotlib_is_a_table(two_runs, monkeypatch, capsys):
    """And says what the picture needs, when there is nothing left to lose."""
    monkeypatch.setattr(comparison.importlib.util, "find_spec", lambda name: None)
    assert comparison.main(two_runs) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 4 and "needs matplotlib" in printed.err


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda folder: (folder / "generated.jsonl").unlink(),
            "generated.jsonl: no such file; write it: evaluate.py",
        ),
        (lambda folder: (folder / "generated.jsonl").write_text("{}"), "generated.jsonl: not what evaluate.py writes"),
        (lambda folder: (folder / "generated.jsonl").write_text(""), "not of the same problems"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "metrics.jsonl"),
        (lambda folder: (folder.parent / "new").write_text("a file"), "new"),
    ],
)
def test_a_comparison_of_what_is_not_there_is_one_line_before_any_work(two_runs, tmp_path, capsys, spoil, said):
    """A run that was not evaluated yet, a folder that is mistyped."""
    spoil(tmp_path / "nested")
    assert comparison.main(two_runs) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and printed.err.count("\n") == 1
