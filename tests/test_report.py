"""The table and the curve that a run ends with, from hand-made metrics."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import report
from support import pictures
from support.log import METRICS, readable
from support.settings import Settings, write_settings

BATCH = {"reward": 0.5, "acceptance": 0.8, "acceptance_p5": 0.1, "sequence_acceptance": 0.3, "ess": 0.4}
BATCH |= {"zero_variance_groups": 0.25, "unfinished": 0.0}


def row(step: int, **figures) -> dict:
    return dict.fromkeys(METRICS) | {"phase": "reinforce", "step": step} | figures


def evaluation(step: int, *accuracies: tuple[str, float, float]) -> dict:
    """A line with the sampled and the greedy accuracy of some splits."""
    figures = {"phase": "evaluate"}
    for split, sampled, greedy in accuracies:
        key = f"{split}_accuracy"
        figures |= {key: greedy, f"{key}_se": 0.01, f"{key}_sampled": sampled, f"{key}_sampled_se": 0.02}
    return row(step, **figures)


def of_full(reward, length, speed) -> dict:
    return {"full_reward": reward, "full_mean_length": length, "full_tokens_per_second": speed}


RUN = [
    evaluation(0, ("test", 0.4, 0.5), ("wordings", 0.1, 0.2)),
    row(1, **BATCH | {"reward": 0.25}),
    row(2, **BATCH, mean_length=10.0, tokens_per_second=3000.0, **of_full(0.85, 20.0, 1500.0)),
    evaluation(2, ("test", 0.5, 0.6)),
    row(3, **BATCH | {"reward": 1.0, "acceptance": None}),
    row(4, **BATCH, mean_length=14.0, tokens_per_second=5000.0, **of_full(0.75, 22.0, 2500.0)),
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


def test_without_a_folder_the_runs_in_runs_are_listed(tmp_path, capsys, monkeypatch):
    """There train.py puts a run without --out. Where nothing is, that is said in a line, and no usage."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # no such folder; an empty one
        assert report.main([]) == 2
        assert (
            capsys.readouterr().err == "error: no runs in runs/, where train.py puts them; name the folder of a run\n"
        )
        (tmp_path / "runs").mkdir(exist_ok=True)
    make(tmp_path / "runs" / "a")
    assert report.main([]) == 0 and capsys.readouterr().out.startswith("runs/a  step 4, sampled")


def test_a_reward_below_0_is_drawn_below_0(tmp_path):
    """Of one's own: − 1 for a wrong answer."""
    plotted = report.plot({"·": [(0, -1.0), (1, 1.0)], "o": [(1, 0.0)]}, last=1, width=2, height=4).splitlines()
    assert [line[7:] for line in plotted[:5]] == ["  ·", "", "  o", "", "·"]
    assert plotted[0].startswith(" 1.00 |") and plotted[4].startswith("-1.00 |")


def test_a_run_that_was_evaluated_once_has_no_accuracy_after():
    """The same figure twice, + 0.0 points, reads as a run that learned nothing."""
    [line] = [line for line in report.table(RUN[:3]).splitlines() if line.startswith("test, greedy")]
    assert line.split() == ["test,", "greedy", "50.0%", "±", "1.0%", "–"]


def test_a_line_of_the_terminal_has_eighty_characters_at_most():
    """It stands in a window of a laptop, with 1,000 steps and numbers of their full width."""
    wide = (
        dict.fromkeys(METRICS)
        | BATCH
        | {"phase": "reinforce", "step": 1000, "stepped": True, "zero_variance_groups": 0.99}
    )
    wide |= {
        "acceptance": 0.9,
        "acceptance_p5": 0.5,
        "sequence_acceptance": 0.5,
        "mean_length": 1024.0,
        "unfinished": 1.0,
        "tokens_per_second": 12345.6,
    }
    for row in (wide, wide | {"stepped": False, "zero_variance_groups": 1.0}):
        assert max(map(len, readable(row, 1000).splitlines())) <= 80
    assert "no signal" in readable(wide | {"stepped": False}, 1000)
    accuracies = {key: 0.999 for key in METRICS if "accuracy" in key}
    assert len(readable(dict.fromkeys(METRICS) | accuracies | {"phase": "evaluate", "step": 1000}, 1000)) <= 80


def test_the_table_says_before_and_after_nested_and_full_first_and_last():
    """Of the first and the last evaluation; of batches that both models sampled; of the first and the last tenth."""
    lines = [line.split() for line in report.table(RUN).splitlines()]
    assert "test, greedy 50.0% ± 1.0% 55.0% ± 1.0% +5.0 points".split() in lines
    assert "test, sampled 40.0% ± 2.0% 65.0% ± 2.0% +25.0 points".split() in lines
    assert "new wordings, sampled 10.0% ± 2.0% 20.0% ± 2.0% +10.0 points".split() in lines
    assert "sampling, 2 batches nested full".split() in lines
    assert "tokens/s 4,000 2,000 2.00 times".split() in lines
    assert "tokens a completion 12.0 21.0".split() in lines
    assert "reward 0.500 0.800".split() in lines
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


# several runs


def make(folder, rows=RUN, **given):
    """A run as train.py leaves it."""
    folder.mkdir(parents=True)
    write(folder, rows)
    write_settings(replace(Settings(steps=4, **given), out=str(folder)).decided(), folder)
    return folder


def scaled(factor: float) -> list[dict]:
    """RUN, with other accuracies and rewards."""
    keys = {"test_accuracy", "test_accuracy_sampled", "reward"}
    return [{k: v * factor if k in keys and v is not None else v for k, v in each.items()} for each in RUN]


def test_runs_that_differ_in_the_seed_only_are_one_line_of_the_comparison(tmp_path, capsys):
    """Accuracies of 0.65 and 0.39: their mean is 0.52, their deviation 0.26 / √2, so the error of the mean 0.13."""
    make(tmp_path / "a", gradient="on-policy")
    make(tmp_path / "b", scaled(0.6), gradient="on-policy", seed=1)
    make(tmp_path / "c", gradient="is", cap=4.0)
    assert report.main([str(tmp_path / name) for name in "abc"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "1 --gradient on-policy".split() and lines[1] == [f"{tmp_path / 'a'},", str(tmp_path / "b")]
    assert lines[2] == "2 --gradient is --cap 4".split(), "a default that follows from another setting is not told"
    assert "1 2 4 test 52.0% ± 13.0% 44.0% ± 11.0% 0.400 ± 0.100".split() in lines
    assert "2 1 4 test 65.0% ± 2.0% 55.0% ± 1.0% 0.500".split() in lines, "of one run the error over the problems"
    assert "2 0.800 0.100 0.300 0.400".split() in lines
    assert "1 – – – 0.000 ± 0.000 4,000 ± 0".split() in lines, "RUN has no seconds; measuring is 0 in most steps"


def test_time_is_what_a_step_costs_and_not_what_watching_it_costs():
    """Measuring nested models is part of the method; an evaluation is not."""
    seconds = {"seconds_sample": 1.0, "seconds_grade": 2.0, "seconds_update": 3.0, "seconds_evaluate": 100.0}
    rows = [
        evaluation(0, ("test", 0.5, 0.5)),
        row(1, tokens=7, seconds_measure=4.0, **seconds),
        row(2, tokens=5, **seconds),
    ]
    assert [(each["seconds"], each["sampled"]) for each in pictures.totals(rows)] == [(0, 0), (10, 7), (16, 12)]


def test_seeds_are_drawn_as_their_mean_and_what_lies_between_them():
    """At step 4: 0.65 and 0.39."""
    points = pictures.spread([RUN, scaled(0.6)], "test_accuracy_sampled", "step")
    assert points[-1] == pytest.approx((4, 0.52, 0.39, 0.65)) and len(points) == 3


def test_seeds_are_compared_up_to_the_step_that_all_have_reached(tmp_path):
    """One is not finished, the other was resumed with more steps, so it has an evaluation that the first has not."""
    resumed = [*RUN[:3], evaluation(1, ("test", 0.9, 0.9)), *RUN[3:]]
    make(tmp_path / "a", resumed)
    make(tmp_path / "b", RUN[:5], seed=1)
    [arm], notes = report.arms_of([tmp_path / "a", tmp_path / "b"])
    assert arm.runs == [RUN[:5], RUN[:5]]
    assert notes == [f"{tmp_path / 'b'}: not finished, at step 3 of 4; its arm ends there"]


def test_a_run_is_taken_once(tmp_path):
    """The same folder by two names, or a copy of it, would make the error over the seeds too small."""
    make(tmp_path / "a")
    make(tmp_path / "copy")
    [arm], notes = report.arms_of([tmp_path / "a", tmp_path / "copy" / ".." / "a", tmp_path / "copy"])
    assert arm.folders == [tmp_path / "a"] and len(notes) == 2 and "left out" in notes[0]


MADE = {"code": {"reward.py": "a", "losses.py": "b"}, "commit": "c", "model": "d", "problems": 1, "torch": "2"}


def made(folder, *entries):
    """Says what a run was made with: MADE, but for what each entry says."""
    (folder / "made_with.json").write_text(json.dumps([MADE | {"after": "step 0"} | entry for entry in entries]))


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"code": MADE["code"] | {"reward.py": "x"}}, "reward.py"),
        ({"code": {"losses.py": "x"}}, "losses.py, reward.py"),
        ({"code": MADE["code"] | {"my_script.py": "x"}}, "my_script.py"),
        ({"model": "x"}, "model"),
        ({"problems": 2}, "problems"),
    ],
)
def test_runs_of_other_code_weights_or_problems_are_no_seeds_of_one_arm(tmp_path, entry, said):
    """README invites to edit reward.py; two folders may hold other weights, or a file other problems, by one name."""
    for seed, name in enumerate("abc"):
        made(make(tmp_path / name, seed=seed), entry if name == "c" else {"commit": name})
    arms, notes = report.arms_of([tmp_path / name for name in "abc"])
    assert [arm.folders for arm in arms] == [[tmp_path / "a", tmp_path / "b"], [tmp_path / "c"]] and not notes
    assert arms[1].label == f"2  with other {said}"


def test_a_run_of_unknown_code_is_no_seed_of_one_that_is_known(tmp_path):
    """An older version's, or made_with.json was deleted."""
    made(make(tmp_path / "a"), {})
    make(tmp_path / "b", seed=1)
    (make(tmp_path / "c", seed=2) / "made_with.json").write_text("[5]")
    arms, _ = report.arms_of([tmp_path / name for name in "abc"])
    assert [arm.label for arm in arms] == ["1  a", "2  with other code, perhaps"]


def test_seeds_of_other_machines_are_said_to_be(tmp_path):
    """They may be averaged, but for their seconds."""
    made(make(tmp_path / "a"), {})
    made(make(tmp_path / "b", seed=1), {"torch": "3"})
    [arm], [note] = report.arms_of([tmp_path / "a", tmp_path / "b"])
    assert note == f"{tmp_path / 'b'}: with other torch than {tmp_path / 'a'}, do not compare their seconds"


def test_a_run_whose_code_changed_on_the_way_is_said_to_be_one(tmp_path, capsys):
    """Neither code has made it alone."""
    changed = {"code": MADE["code"] | {"reward.py": "x"}, "after": "reinforce step 20"}
    made(make(tmp_path / "a"), {}, changed)
    made(make(tmp_path / "b", seed=1), changed)
    arms, notes = report.arms_of([tmp_path / "a", tmp_path / "b"])
    said = f"{tmp_path / 'a'}: with other reward.py after reinforce step 20"
    assert len(arms) == 2 and notes == [said]
    assert report.main([str(tmp_path / "a")]) == 0 and f"note: {said}" in capsys.readouterr().out


def test_code_that_was_edited_and_put_back_is_no_seed_of_code_that_stayed_edited(tmp_path):
    """Nor does another machine, after an edit, make another arm."""
    changed = {"code": MADE["code"] | {"reward.py": "x"}, "after": "reinforce step 2"}
    made(make(tmp_path / "a"), {}, changed)
    made(make(tmp_path / "b", seed=1), {}, changed, changed | {"torch": "3", "after": "reinforce step 3"})
    made(make(tmp_path / "c", seed=2), {}, changed, {"after": "reinforce step 3"})
    arms, _ = report.arms_of([tmp_path / name for name in "abc"])
    assert [arm.folders for arm in arms] == [[tmp_path / "a", tmp_path / "b"], [tmp_path / "c"]]


def test_two_arms_that_were_edited_alike_differ_in_the_rest_alone(tmp_path):
    """What made the ends of the two is compared."""
    changed = {"code": MADE["code"] | {"reward.py": "x"}, "after": "reinforce step 2"}
    made(make(tmp_path / "a"), {}, changed)
    made(make(tmp_path / "b", seed=1), {"model": "x"}, changed | {"model": "x"})
    arms, _ = report.arms_of([tmp_path / "a", tmp_path / "b"])
    assert arms[1].label == "2  with other model"


def test_what_differs_by_the_settings_is_not_told_again(tmp_path):
    """Arms of two models have other weights, as their label says; code that differs as well is told."""
    made(make(tmp_path / "a", model="one"), {})
    made(make(tmp_path / "b", model="other"), {"model": "x", "code": MADE["code"] | {"reward.py": "x"}})
    arms, _ = report.arms_of([tmp_path / "a", tmp_path / "b"])
    assert arms[1].label == "2  --model other with other reward.py"


def test_runs_without_settings_are_arms_of_their_own(tmp_path, capsys):
    """Nothing says that they differ in the seed only."""
    for name in "ab":
        make(tmp_path / name)
        (tmp_path / name / "config.json").unlink()
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1  a\n") and "\n2  b\n" in printed and printed.count("settings are not known") == 2
    assert report.command(tmp_path / "a") == "a", "the title of its curve.png"


def test_accuracies_of_different_problems_are_not_mixed(tmp_path, capsys, drawn):
    """Valid and test have a panel each, and the reader is told."""
    make(tmp_path / "a")
    valid = [evaluation(0, ("valid", 0.4, 0.5)), row(1, **BATCH), evaluation(4, ("valid", 0.6, 0.5))]
    make(tmp_path / "b", valid, eval_split="valid")
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "2 1 4 valid 60.0% ± 2.0%" in " ".join(printed.split()) and "do not compare their accuracies" in printed
    labels = [axis.get_ylabel() for axis in drawn[0].axes]
    assert labels[::3] == ["test accuracy, sampled", "valid accuracy, sampled", "reward of the batches"]


def test_a_comparison_names_the_folder_that_is_no_run(tmp_path, capsys):
    """Before anything is printed or drawn."""
    (tmp_path / "empty").mkdir()
    assert report.main([str(make(tmp_path / "a")), str(tmp_path / "empty")]) == 2
    printed = capsys.readouterr()
    assert str(tmp_path / "empty" / "metrics.jsonl") in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert report.main([str(tmp_path / "a"), "--out", "x.png"]) == 2 and "two runs" in capsys.readouterr().err


def test_the_picture_of_a_comparison_lies_beside_the_runs(tmp_path, capsys):
    """Where runs/* names it the next time."""
    pytest.importorskip("matplotlib", reason="needs matplotlib (requirements-dev.txt)")
    given = [str(make(tmp_path / name, gradient=name)) for name in ("on-policy", "retrace")]
    for runs in (given, [str(tmp_path / "comparison.png"), *given]):
        assert report.main(runs) == 0
        assert f"picture: {tmp_path / 'comparison.png'}" in capsys.readouterr().out
    assert 20_000 < (tmp_path / "comparison.png").stat().st_size < 500_000
    assert report.main([*given, "--out", str(tmp_path / "other.svg")]) == 0
    assert "<svg" in (tmp_path / "other.svg").read_text()


def test_a_comparison_without_matplotlib_is_its_tables(tmp_path, capsys, monkeypatch):
    """And one line that says what the picture needs."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert report.main([str(make(tmp_path / name, gradient=name)) for name in ("on-policy", "retrace")]) == 0
    assert capsys.readouterr().out.endswith("\n(comparison.png needs matplotlib, which is not here)\n")


# the pictures


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of files."""
    pytest.importorskip("matplotlib", reason="needs matplotlib (requirements-dev.txt)")
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    return figures


def assert_whole(figure) -> None:
    """Nothing of it, text included, goes beyond its edges."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box, (width, height) = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, box


FULL = [each | {"skipped_layers": []} | of_full(None, None, None) for each in RUN]
LONG = (
    "python train.py --model /"
    + "a/long/path" * 20
    + " --prompt-template 'costs $5, or $x^2 {question}"
    + " word" * 300
)


@pytest.mark.parametrize(
    "rows, title, panels",
    [
        (RUN, "python train.py", 3),  # RUN has no losses and no gradient norms
        (FULL, LONG, 3),
        (RUN[:2], "one step", 2),
        (RUN[1:3], "no accuracy", 3),
        ([row(1), row(2)], "nothing was measured", 0),
        ([row(n, **BATCH, loss=-0.01, grad_norm=1e4, tokens_per_second=1e6) for n in range(1, 1001)], "a thousand", 5),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_picture_of_any_run_is_whole(drawn, tmp_path, rows, title, panels):
    """A title of any length, and figures that are not there."""
    pictures.draw(rows, title, tmp_path / "curve.png")
    assert_whole(drawn[0])
    assert sum(axis.has_data() for axis in drawn[0].axes) == panels


@pytest.mark.parametrize("arms", [1, 3, 30])
@pytest.mark.filterwarnings("error")
def test_the_picture_of_any_comparison_is_whole(drawn, tmp_path, arms):
    """Many arms with long names; one that was not evaluated; seeds; a run of one step."""
    runs = [[RUN, scaled(0.6)], [RUN[:2]], [RUN[1:3]]]
    pictures.overlay({f"{n} {LONG[: 20 + 20 * n]}": runs[n % 3] for n in range(arms)}, tmp_path / "comparison.png")
    assert_whole(drawn[0])


def test_lines_differ_in_more_than_colour():
    """For a grey print, and for who sees colours otherwise."""
    looks = [(each["color"], each["linestyle"], each["marker"]) for each in map(pictures.style, range(28))]
    assert len(set(looks)) == 28 and len({look[1:] for look in looks[:20]}) == 20


def test_a_run_is_titled_by_its_command(tmp_path):
    """Flags that are not the defaults, in a form that can be typed again; the folder of the picture is known."""
    folder = make(tmp_path / "a", skip_ratio=0.0, prompt_template="a b{question}", gradient_checkpointing=True, lr=1e-4)
    said = "--skip-ratio 0 --steps 4 --prompt-template 'a b{question}' --gradient-checkpointing"
    assert report.command(folder) == f"python train.py {said}", "1e-4 is what the embedded model has without --lr"


def test_what_a_cut_or_missing_file_of_metrics_means_is_said(tmp_path, capsys):
    """A run that was stopped before its first line, or killed within one."""
    assert report.main([str(tmp_path)]) == 2 and "its first evaluation or step" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"phase": "reinf')
    assert report.main([str(tmp_path)]) == 2 and "version, or cut off" in capsys.readouterr().err


def test_a_pipe_that_has_seen_enough_is_a_quiet_end(tmp_path):
    """`| head`, or a terminal that was closed. What is still in a buffer must not complain when the process ends."""
    make(tmp_path / "a")
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "report.py", str(tmp_path / "a")]
    with subprocess.Popen(
        command, cwd=Path(report.__file__).parent, env=usual, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.parametrize("program", ["report.py", pytest.param("look.py", marks=pytest.mark.slow)])
def test_a_pipe_that_knows_few_letters_gets_question_marks(program):
    """As on Windows, where ρ has no place in a pipe's code page."""
    root, poor = Path(report.__file__).parent, os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, program, "--help"], cwd=root, env=poor, capture_output=True, check=True)
    assert b"usage" in shown.stdout and not shown.stderr
