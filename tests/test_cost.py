"""docs/cost.py: what a step costs, fitted and checked."""

import argparse
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from docs import cost
from rollout import Rollout


def batch(prompts: list[list[int]], lengths: list[int]) -> Rollout:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Rollout(prompts, mask.long(), mask, torch.zeros(mask.shape), mask[:, 0])


def test_the_work_of_a_batch_is_counted_by_hand():
    """Two completions of one prompt of three tokens, of four and two tokens, one of three layers skipped."""
    rollout = batch([[1, 2, 3], [1, 2, 3]], [4, 2])
    # The prompt's 3 tokens give the first ones. 3 + 1 more are decoded in 3 steps; before them are 3 prompt tokens
    # each, and 1 + 2 + 3 and 1 completion tokens, themselves included.
    assert cost.sampling_features(rollout, n_layers=3, n_skipped=1) == [9, 3, 4, 6, 8, 38, 4]
    # One micro-batch: 3 prompt tokens and 2 rows of 3; each of these sees at most 3 + 3; 6 tokens are scored.
    assert cost.pass_features(rollout) == [1, 9, 45, 6]


def test_rates_that_are_there_are_found_and_none_is_negative():
    """Exact where the seconds are a sum of features; a feature that would take time off is left out."""
    generator = np.random.default_rng(0)
    features, true = generator.uniform(1, 9, size=(12, 3)), np.array([0.5, 0.0, 2.0])
    rows = [{"features": {"part": list(x)}, "seconds": {"part": float(x @ true)}} for x in features]
    np.testing.assert_allclose(cost.fitted(rows, "part"), true, atol=1e-9)
    for row in rows:
        row["seconds"]["part"] -= 0.05 * row["features"]["part"][1]
    found = cost.fitted(rows, "part")
    assert found[1] == 0 and found.min() >= 0


def test_speculation_by_hand():
    """A draft for nothing that is always accepted gives one token more than it is ahead; one that never is, one."""
    assert cost.speculated(draft=0, check=1, full=1, acceptance=1 - 1e-12, ahead=3) == pytest.approx(4, abs=1e-3)
    assert cost.speculated(draft=0, check=1, full=1, acceptance=0.0, ahead=3) == 1
    assert cost.speculated(draft=0.5, check=1, full=1, acceptance=0.5, ahead=1) == 1.0


def test_a_gpu_gains_where_few_rows_are_sampled_for_long():
    """Weights are read once a step, whatever the rows; and what is not sampling is not saved."""
    model = cost.MODELS["Qwen2.5-7B"]
    parts = [cost.on_gpu(*model, rows, 256, 0) for rows in (1, 64, 1024)]
    shares = [sample / (sample + learn) for sample, learn in parts]
    assert all(a > b for a, b in pairwise(shares))
    assert cost.on_gpu(*model, 64, 256, 8)[1] == parts[1][1] and cost.on_gpu(*model, 64, 256, 8)[0] < parts[1][0]


def test_batches_are_measured_a_line_each(tmp_path, monkeypatch):
    """Few and small ones of the embedded model: what is fitted, what is checked, and rollouts of a data set."""
    monkeypatch.setattr(cost, "FIT", [(8, 4, 3, 0.0), (16, 4, 3, 0.25)])
    monkeypatch.setattr(cost, "CHECK", [(8, 10, 5, 0.0)])
    given = {"model": "", "dataset": "arith", "data_dir": None, "dtype": "float32", "device": "cpu"}
    given |= {"max_new_tokens": 4, "repeats": 1}
    cost.measure(argparse.Namespace(out=tmp_path / "cost.jsonl", **given))
    rows = [json.loads(line) for line in (tmp_path / "cost.jsonl").read_text().splitlines()]
    assert sorted(row["kind"] for row in rows) == ["check", "data", "data", "fit", "fit"]
    assert sorted((row["rows"], row["skipped"]) for row in rows if row["kind"] != "data") == [(8, 0), (8, 0), (16, 3)]
    for row in rows:
        assert row["seconds"].keys() == row["features"].keys() and row["seconds"]["sampling"] > 0


def test_predictions_and_what_follows_are_tables(tmp_path, capsys):
    """From batches whose seconds are known sums, so that every prediction is right."""
    rates = {"sampling": [1e-6, 1e-3, 1e-4, 1e-4, 1e-5, 1e-8, 1e-6], "optimiser": [0.1]}
    rates |= {part: [1e-3, 1e-4, 1e-7, 1e-4] for part in ("scoring", "backward")}
    lines = []
    for i, (rows, prompt, length, share) in enumerate([*cost.FIT, *cost.CHECK, (64, 90, 15, 0.2)]):
        k = round(share * 10)
        counted = cost.features(cost.imagined(rows, prompt, length), 10, k)
        seconds = {part: float(np.dot(counted[part], each)) for part, each in rates.items()}
        kind = "fit" if i < len(cost.FIT) else "check" if i < len(cost.FIT) + len(cost.CHECK) else "data"
        shape = {"kind": kind, "rows": rows, "prompt": prompt, "length": length, "skipped": k, "layers": 10}
        lines.append(json.dumps(shape | {"seconds": seconds, "features": counted}))
    path = tmp_path / "cost.jsonl"
    path.write_text("\n".join(lines))
    assert cost.main(["--read", str(path), "--accepted", "2=0.9"]) == 0
    said = capsys.readouterr().out
    for heading in ("median, worst", "predicted / measured", "of one length", "worth its seconds", "self-speculation"):
        assert heading in said
    [checked] = [line for line in said.splitlines() if line.startswith("| check, 8 |")]
    assert re.findall(r"(\d+)%, [+-](\d+)%", checked) == [("0", "0")] * 5
    assert cost.main(["--gpu"]) == 0 and "Qwen2.5-7B" in capsys.readouterr().out


def test_what_is_not_there_is_one_line(tmp_path, capsys):
    """A file that is mistyped, or none at all."""
    for flags, said in (([], "--out nor --read"), (["--read", str(tmp_path / "none.jsonl")], "none.jsonl")):
        assert cost.main(flags) == 2
        printed = capsys.readouterr()
        assert said in printed.err and printed.err.count("\n") == 1
