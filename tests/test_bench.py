"""bench.py: every part runs and prints what it says, on the embedded model and very little work."""

import json

import pytest

import bench

SMALL = "--max-new-tokens 3 --repeats 1 --shapes 2x2 --device cpu".split()


def test_the_parts_print_tables_and_a_line_of_json(capsys):
    """A ratio states the lengths of both its sides; the step's parts add up."""
    assert bench.main(["rollout", "nested", "decode", "step", *SMALL]) == 0
    printed = capsys.readouterr().out.splitlines()
    results = json.loads(printed[-1])
    assert list(results) == ["rollout", "nested", "decode", "step"]
    assert results["rollout"][0]["tokens/s"] > 0 and results["rollout"][0]["length"] <= 3
    assert [row["layers skipped"] for row in results["nested"]] == [f"{k} of 12" for k in (0, 1, 2, 4, 6)]
    assert all(row["length"] == 3 for row in results["nested"]), "equal work"
    seconds = {row["part"]: row["seconds"] for row in results["step"]}
    assert seconds["sample"] + seconds["optimiser"] < seconds["step"]
    assert sum(line.startswith("| ---") for line in printed) == 4


def test_a_point_of_growth_is_measured(capsys):
    """In a process of its own when all are; here the point itself."""
    point = json.dumps({"rows": 8, "length": 2, "vocabulary": 64})
    assert bench.main(["point", "--point", point, *SMALL]) == 0
    [row] = json.loads(capsys.readouterr().out.splitlines()[-1])["point"]
    assert row["rows"] == 8 and row["sample, s"] > 0 and row["update, s"] > 0 and row["peak, GiB"] > 0


def test_transformers_samples_the_same_work(capsys):
    """--compare: the same prompts, useful tokens counted alike."""
    pytest.importorskip("transformers", reason="needs transformers (requirements-dev.txt)")
    assert bench.main(["rollout", "--compare", *SMALL]) == 0
    [row] = json.loads(capsys.readouterr().out.splitlines()[-1])["rollout"]
    assert row["times"] == pytest.approx(row["tokens/s"] / row["transformers"]) and 0 < row["its length"] <= 3


@pytest.mark.parametrize(
    "flags",
    [
        "speed",
        "--dataset svamp --data-dir nowhere",
        "--shapes 8",
        "step --shapes 2x1",
        "rollout --shapes 501x1",
        "--repeats 0",
    ],
)
def test_what_cannot_be_measured_is_one_line(flags, capsys):
    """A mistyped part, a missing folder, a shape that is none, no group, more prompts than there are, no run."""
    assert bench.main(flags.split()) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
