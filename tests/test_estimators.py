"""The scripts that compare estimators and nested models: what they can know beforehand, they must find."""

import json
import re
import sys

import pytest
import torch

from data.own import to_problem
from docs import demo, estimators, skipping
from report import points
from support.log import read
from support.settings import Settings, parse


def test_where_all_is_counted_out_the_exact_estimator_has_no_bias():
    """E5 without a cap (T1); every other weight has some, and the noise of a bounded weight is the smaller one."""
    rows = {row["name"]: row for row in estimators.counted_out(n_models=1, n_masks=1, horizon=3) if row["at"] == 3}
    exact = rows.pop("E5 IS, sequence")
    assert exact["bias"] < 1e-9 and exact["cosine"] == pytest.approx(1)
    assert all(row["bias"] > 1e-3 for row in rows.values())
    assert rows["E7 Retrace, λ = 1"]["noise"] < rows["E4 on-policy"]["noise"]
    assert all(row["aim"] <= row["cosine"] for row in rows.values() if row["cosine"] > 0)


def test_the_noise_of_few_batches_is_not_taken_for_bias():
    """Estimates g* + n, 2 g* + n and an orthogonal part, from noisy samples of known size: bias 0, 1, cosine, noise."""
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(20_000)
    true[:100] = 1.0  # ‖g*‖² = 100
    across = torch.zeros(20_000)
    across[100:200] = 1.0

    def batches(mean, n=60, spread=0.1):  # noise 20,000 · 0.01 / 100 = 2
        return mean + spread * torch.randn(n, len(mean), generator=generator)

    def blocks(g):
        return torch.stack([g[i::6].mean(dim=0) for i in range(6)])

    reference = blocks(batches(true))
    for mean, bias, cosine in ((true, 0, 1), (2 * true, 1, 1), (true + across, 1, 0.5**0.5)):
        g = batches(mean)
        both = torch.cat((blocks(g), reference))
        figures = estimators.compare(both @ both.T, g.square().sum(dim=1))
        assert figures["bias"] == pytest.approx(bias, abs=0.15) and figures["cosine"] == pytest.approx(cosine, abs=0.02)
        assert figures["noise"] == pytest.approx(2, rel=0.05)
        size = (mean.norm() / true.norm()).item() * cosine
        assert figures["aim"] == pytest.approx(size / ((mean.norm() / true.norm()).item() ** 2 + 2) ** 0.5, abs=0.03)


def test_sums_are_worked_out_right_and_as_long_as_said():
    """Every step's result is the next one's start, and the last one the answer."""
    for problem in (to_problem(record, set()) for record in estimators.sums(50)):
        steps = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", problem.rationale)
        start, *told = (int(number) for number in re.findall(r"\d+", problem.question))
        assert 6 <= len(steps) == len(told) <= 10
        for (left, sign, right, result), number in zip(steps, told, strict=True):
            assert int(left) == start and int(right) == number
            start = start + number if sign == "+" else start - number
            assert int(result) == start > 0
        assert problem.answer == str(start) and problem.rationale.endswith(f"#### {start}")


def test_rank_correlations_by_hand():
    """One sign rises with the reward, one falls, in one two neighbours of four change places, 0.8; in the last two are
    equal and share a rank: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4, 4.5 / √(4.5 · 5) = 0.95."""
    shared = {"ratio": 0.1, "aim": None}
    rows = [
        shared | {"of_full": x, "acceptance": x**3, "acceptance_p5": -x, "sequence_acceptance": y, "ess": z}
        for x, y, z in ((0.1, 0.2, 0.1), (0.2, 0.1, 0.2), (0.3, 0.3, 0.2), (0.4, 0.4, 0.4))
    ]
    said = skipping.correlations([{"ratio": 0, "of_full": 1.0}, *rows])
    assert "of_full, 4 rows: acceptance 1.00, acceptance_p5 -1.00, sequence_acceptance 0.80, ess 0.95" in said
    assert "aim, 0 rows" in said


def row(bypass: str, skipped: int, reward: float) -> dict:
    signs = dict.fromkeys(skipping.SIGNS, reward)
    shape = {"bypass": bypass, "skipped": skipped, "layers": 10, "ratio": skipped / 10, "length": 9.0}
    return shape | signs | {"reward": reward, "of_full": reward / 0.5, "aim": None, "rewards": [reward, reward]}


def test_how_far_one_may_skip_is_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    """Each nested model against the full one, on the same problems."""
    pytest.importorskip("matplotlib", reason="draws the picture")
    rows = [row("full", 0, 0.5), row("linear", 1, 0.25), row("mean", 2, 0.0)]
    for name in ("small", "large"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("small", "large")]
    monkeypatch.setattr(sys, "argv", ["skipping", "--read", *files, "--out", str(tmp_path / "skipping.svg")])
    assert skipping.main() == 0
    said = capsys.readouterr().out
    assert said.count("| linear | 1 of 10 | 9 | 0.25 | 0.5 | – |") == 2 and "| -25.0 (-25.0 … -25.0) |" in said
    assert "of_full, 4 rows" in said and "NaN" not in (tmp_path / "skipping.svg").read_text()


def test_rows_of_other_samples_are_not_added_to(tmp_path, monkeypatch, capsys):
    """They could not be held against each other."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("full", 0, 0.5) | {"samples": 4, "temperature": 1.0}) + "\n")
    for flags in ("--samples 2", "--temperature 0.6"):
        monkeypatch.setattr(sys, "argv", ["skipping", "--out", str(tmp_path / "rows.jsonl"), *flags.split()])
        assert skipping.main() == 2 and "give another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_nested_models_are_measured_and_what_is_there_is_kept(tmp_path, monkeypatch):
    """The embedded model, few problems. A second call adds the row that is missing, and only that. The full model
    accepts what it sampled at a temperature."""
    flags = f"--out {tmp_path / 'rows.jsonl'} --dtype float32 --problems 6 --samples 2 --masks 2 --max-new-tokens 16"
    flags += " --temperature 0.6"
    for bypasses, ratios in (("linear", "0.1"), ("linear mean", "0.1")):
        argv = ["skipping", *flags.split(), "--bypasses", *bypasses.split(), "--ratios", ratios]
        monkeypatch.setattr(sys, "argv", argv)
        assert skipping.main() == 0
    rows = skipping.read(tmp_path / "rows.jsonl")
    assert [(each["bypass"], each["skipped"]) for each in rows] == [("full", 0), ("linear", 1), ("mean", 1)]
    assert all(len(each["rewards"]) == 6 and each["layers"] == 12 for each in rows)
    assert rows[0]["sequence_acceptance"] > 0.9999 > rows[1]["sequence_acceptance"]


def test_the_arms_of_the_demo_differ_in_sampling_and_correction_alone():
    """Else what the picture shows is not the correction's doing."""
    arms = [parse([*demo.FLAGS.split(), *flags.split()], "")[0] for _, flags in demo.ARMS.values()]
    differ = {key for key in set().union(*arms) if len({str(arm.get(key)) for arm in arms}) > 1}
    assert differ == {"skip_ratio", "gradient"} and all(Settings(**arm) for arm in arms)


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    """A tenth of it: two arms, one step; what was trained is what the table says."""
    pytest.importorskip("matplotlib", reason="needs matplotlib (requirements-dev.txt)")
    monkeypatch.setattr(demo, "FLAGS", demo.FLAGS.replace("--steps 30", "--steps 1"))
    monkeypatch.setattr(demo, "ARMS", {mark: demo.ARMS[mark] for mark in "xt"})
    monkeypatch.setattr(demo, "STEPS", 1)
    monkeypatch.setattr(demo, "PROBLEMS", 20)
    assert demo.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for mark in "xt":
        first, last = (y for _, y in points(read(tmp_path / f"{mark}-0"))[1])
        assert re.search(rf"^{mark} nested, .*{first:.1%} +{last:.1%} ", printed, re.M)
    assert (tmp_path / "demo.svg").is_file() and "> step 1\n" in printed


def test_a_run_of_the_demo_that_fails_says_why(tmp_path, monkeypatch, capsys):
    """Not a traceback of subprocess, and no picture of the rest."""
    monkeypatch.setattr(demo, "ARMS", {"x": ("nested, uncorrected (E4)", "--gradient none")})
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "nested, uncorrected (E4): error: --gradient is 'none'; expected one of" in capsys.readouterr().err
