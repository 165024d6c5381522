"""look.py: its numbers are the method's, what a run recorded is what it did, and nothing is wider than a terminal."""

import json
import re
import shutil

import pytest
import torch
from conftest import pay

import look
import train
from data import arith
from losses import WEIGHTS
from rollout import completion_logprobs, generate
from support.log import read
from support.pretrained import load_model
from support.settings import Settings

RECORD = {"reward": 1.0, "correct": True, "ended": True}


def completion(rho: list[float], tokens: list[str] | None = None, **more) -> look.Completion:
    """Of tokens that the nested model gives ¼ each, and the full one ρ/4."""
    log_eta = torch.full((len(rho),), 0.25, dtype=torch.float64).log()
    log_pi = log_eta + torch.tensor(rho, dtype=torch.float64).log()
    return look.Completion(tokens or ["a"] * len(rho), log_eta, log_pi, RECORD, 1.5, **more)


def group(*completions, question="1 < 2 & 3?") -> look.Group:
    return look.Group("problem 0", question, "7", [1, 2], list(completions), Settings())


def bare(text: str) -> str:
    """Without the colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_table_by_hand():
    """ρ = ½, 2, 1: each weight by its equation, and π's own favourite where it is another token."""
    c = completion([0.5, 2.0, 1.0], ["x", "\n", ""], wanted=[("y", 0.8), ("\n", 0.5), ("", 0.25)])
    first, second, third = look.table(c, Settings())
    assert first[:5] == ["0", "x", "0.125", "0.250", "0.50"] and second[1] == "↵" and third[1] == "∅"
    weights = [dict(zip(WEIGHTS, row[5:-1], strict=True)) for row in (first, second, third)]
    assert [w["on-policy"] for w in weights] == ["1.00"] * 3
    assert [w["is"] for w in weights] == ["0.50", "2.00", "1.00"]
    assert [w["is-sequence"] for w in weights] == ["1.00"] * 3
    assert [w["is-prefix"] for w in weights] == ["0.50", "1.00", "1.00"]
    assert [w["retrace"] for w in weights] == ["0.50", "1.00", "1.00"]
    assert (first[-1], second[-1], third[-1]) == ("y 0.80", "", "")
    assert look.head(3, c) == "3  right  reward 1  advantage +1.50  Πρ 1  accepted 0.50"


def test_a_table_has_the_weights_of_the_run_s_own_bound():
    """ρ = ½, 2, 1 with a cap of 1.5: outside of [2/3, 1.5] mask leaves no weight, and truncate 1.5 of what is above."""
    c = completion([0.5, 2.0, 1.0], ["x", "y", "z"], wanted=[("x", 0.8), ("y", 0.5), ("z", 0.25)])
    for bound, expected in (("mask", ["0.00", "0.00", "1.00"]), ("truncate", ["0.50", "1.50", "1.00"])):
        rows = look.table(c, Settings(gradient="is", cap=1.5, bound=bound))
        assert [dict(zip(WEIGHTS, row[5:-1], strict=True))["is"] for row in rows] == expected


def test_colours_begin_where_the_scale_says():
    """Orange below 0, blue above; nothing near it."""
    levels = [look.level(x) for x in (-9.0, -2.0, -1.0, -0.5, -0.1, -0.09, 0.0, 0.09, 0.1, 0.5, 1.0, 2.0, 9.0)]
    assert levels == [-4, -4, -3, -2, -1, 0, 0, 0, 1, 2, 3, 4, 4]
    assert "48;5;202m" in look.painted("x", -3, True) and "48;5;33m" in look.painted("x", 3, True)
    assert look.painted("x", 0.05, True) == "x"
    assert [look.painted("x", far, False) for far in (-1, 0.2, 1)] == ["x↓", "x", "x↑"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("colour", [False, True])
def test_nothing_is_wider_than_the_terminal(width, colour):
    """Long completions, long tokens, a long question."""
    tokens = [" word", "Donaudampfschiffahrt", "\n", "1"] * 30
    wanted = [("Donaudampfschiffahrtsgesellschaft", 0.9)] * 120
    long = completion([0.2, 1.0, 1.7, 1.0] * 30, tokens, wanted=wanted)
    text = look.terminal(group(long, long, question="why " * 60), 1, width, colour)
    assert max(map(len, bare(text).splitlines())) <= width
    assert ("\x1b[" in text) == colour
    together = "".join(bare(text).split("Completion 1")[0].split())
    assert together.count("Donaudampfschiffahrt") == 60, "each token is shown whole"


def test_a_page_is_one_file_and_its_text_is_no_markup():
    """It asks nothing of the network; a token or a question that looks like a tag stays text."""
    page = look.page(group(completion([0.1, 3.0], ["<script>", '"&'])), 0)
    assert page.count("<script") == 1 and "http" not in page and "src=" not in page
    assert "&lt;script&gt;" in page and "1 &lt; 2 &amp; 3?" in page
    assert 'title="token 0: π 0.025, η 0.250, ρ 0.10, on-policy 1.00' in page
    assert "#ff5f00" in page and "#5fafff" in page and page.count("<tr") == 1 + 2


def test_a_page_computes_every_weight_again_and_begins_with_the_run_s_own_settings():
    """A kind that losses.py has and the page's script has not would show the old numbers."""
    page = look.page(group(completion([0.5, 2.0])), 0)
    known = page.partition("LOG_WEIGHTS = {")[2].partition("\n}")[0]
    assert re.findall(r'^  "([\w-]+)":', known, re.M) == list(WEIGHTS)
    assert [f"data-kind={kind}" in page for kind in WEIGHTS] == [True] * len(WEIGHTS)
    assert "<option selected>is-sequence</option>" in page and "value=2.0" in page and "data-r=-0.693147" in page


def test_letters_of_several_tokens_come_with_their_last():
    class Bytes:
        eos_ids = [0]

        def decode(self, ids):
            return bytes(i for i in ids if i).decode(errors="replace")

    assert look.pieces(Bytes(), [*"aé∎".encode(), 98, 0]) == ["a", "", "é", "", "", "∎", "b", "∎"]


@pytest.mark.parametrize("tau", [1.0, 0.7])
def test_a_new_group_is_what_generate_samples_and_the_full_model_thinks(checkpoint, tau):
    """η is recorded, π is the full model's; with nothing skipped they are one. Random weights: no layer is measured."""
    flags = {
        "model": str(checkpoint),
        "max_new_tokens": 12,
        "samples": 3,
        "device": "cpu",
        "seed": 5,
        "temperature": tau,
    }
    s = Settings(**flags, skip_ratio=0.5, valid_layers="1-2", bypass="identity").decided()
    shown = look.sampled(s, "test", 4, 1)
    assert shown.skipped == [1, 2] and shown.question == arith.load("test")[4].question
    model, tokenizer = load_model(str(checkpoint), "float32", "cpu")
    prompt = tokenizer.encode_prompt(shown.question)
    skip = [False, True, True, False]
    rollout = generate(model, [prompt], 3, 12, tokenizer.eos_ids, tau, skip=skip, seed=5, full_prefill=True)
    log_pi, _ = completion_logprobs(model, [prompt] * 3, rollout.tokens, rollout.mask, tau)
    for row, c in enumerate(shown.completions):
        mask = rollout.mask[row]
        assert torch.equal(c.log_eta, rollout.logprobs[row][mask]) and len(c.tokens) == mask.sum()
        torch.testing.assert_close(c.log_pi, log_pi[row][mask].detach(), atol=1e-4, rtol=0)
        assert all(p >= c.log_pi[t].exp() - 1e-6 for t, (_, p) in enumerate(c.wanted))
        assert "".join(c.tokens).removesuffix("∎") == c.record["completion"]
    nothing = look.sampled(Settings(**flags, skip_ratio=0.0).decided(), "test", 4, 1)
    assert all(c.log_rho.abs().max() < 1e-4 for c in nothing.completions)


@pytest.fixture(scope="module")
def finished_once(checkpoint, tmp_path_factory):
    """A run of two groups a step, so that its samples are its whole batches."""
    out = tmp_path_factory.mktemp("finished") / "out"
    flags = "--steps 3 --eval-every 2 --prompts 2 --samples 3 --max-new-tokens 9 --eval-problems 3 --skip-ratio 0.5"
    fixed = f"--valid-layers 1-3 --bypass identity --save-every 100 --device cpu --model {checkpoint}"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pay(monkeypatch, lambda text, p, g: len(text) % 2)
        assert train.main([*flags.split(), *fixed.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of that run, which a test may spoil."""
    return shutil.copytree(finished_once, tmp_path / "out")


def test_what_a_run_recorded_are_the_batches_that_its_metrics_describe(finished):
    """Both groups of a step together give the acceptance, the reward and the ratios of its line."""
    for row in (row for row in read(finished) if row["phase"] == "reinforce" and row["step"] in (2, 3)):
        both = [look.recorded(finished, row["step"], number) for number in (0, 1)]
        every = [c for each in both for c in each.completions]
        log_rho = torch.cat([c.log_rho for c in every])
        assert len(every) == 6 and both[0].question != both[1].question
        assert log_rho.clamp(max=0).exp().mean().item() == pytest.approx(row["acceptance"], abs=1e-4)
        assert log_rho.abs().max().item() == pytest.approx(row["max_abs_log_ratio"], abs=1e-4)
        assert sum(c.record["reward"] for c in every) / 6 == pytest.approx(row["reward"])
        assert sum(c.acceptance for c in every) / 6 == pytest.approx(row["sequence_acceptance"], abs=1e-4)
        assert both[0].skipped == row["skipped_layers"]
        assert any(c.advantage for c in both[0].completions) or not any(c.advantage for c in every)


def test_the_command_shows_a_run_and_writes_a_page(finished, tmp_path, capsys, monkeypatch):
    """The last step that was kept; another step by its number; the least acceptable completion unless one is named."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert look.main([str(finished)]) == 0
    shown = capsys.readouterr().out
    assert f"{finished},step3" in "".join(shown.split()) and "\x1b" not in shown
    least = min(range(3), key=lambda i: look.recorded(finished, 3, 0).completions[i].acceptance)
    assert f"Completion {least}, token by token" in shown
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert look.main([str(finished), "--step", "2", "--problem", "1", "--completion", "0"]) == 0
    shown = capsys.readouterr().out
    assert "step 2;" in " ".join(shown.split()) and "Completion 0" in shown and "\x1b[" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert look.main([str(finished), "--html", str(tmp_path / "a.html")]) == 0
    assert "<!doctype html>" in (tmp_path / "a.html").read_text() and "page: " in capsys.readouterr().out


def test_the_command_samples_anew(checkpoint, capsys):
    flags = (
        f"--model {checkpoint} --skip-ratio 0.25 --samples 2 --max-new-tokens 6 --bypass identity --valid-layers 1-3"
    )
    assert look.main([*flags.split(), "--problem", "2", "--dataset", "arith", "--split", "wordings"]) == 0
    assert f"problem2ofarithwordings,{checkpoint}" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("{run} --step 1", "--step is 1; the steps whose samples are kept are 2, 3"),
        ("{run} --problem 2", "--problem is 2; expected 0 to 1"),
        ("{run} --completion 3", "--completion is 3; expected 0 to 2"),
        ("{run} --skip-ratio 0.2", "--skip-ratio is of a new sample"),
        ("{run}/nowhere", "no run in"),
        ("--problem 100000", "--problem is 100000; expected 0 to 199"),
        ("--problem -1", "--problem is -1"),
        ("--split nowhere", "split 'nowhere'"),
        ("{run} --split train", "--split is of a new sample"),
        ("--step 0", "--step is 0; expected 1 or more"),
        ("--completion 8", "--completion is 8; expected 0 to 7"),
        ("--html {run}/nowhere/a.html", "No such file"),
        ("--skip-ratio 2", "--skip-ratio is 2"),
        ("--skip-ration 0.2", "did you mean --skip-ratio"),
        ("--model {run}/nowhere", "nowhere"),
    ],
)
def test_bad_input_is_named(finished, flags, said, capsys):
    try:
        status = look.main(flags.format(run=finished).split())
    except SystemExit as error:
        status = error.code
    assert status == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--problem 2", "--step 1", "--completion 3", "--step 0", "--skip-ratio 0.2"])
def test_a_page_that_cannot_be_made_leaves_no_file_and_an_older_one_as_it_was(finished, tmp_path, wrong, capsys):
    """An empty page in a browser says nothing."""
    for name in ("new.html", "old.html"):
        (tmp_path / "old.html").write_text("a page")
        assert look.main([str(finished), "--html", str(tmp_path / name), *wrong.split()]) == 2
    assert not (tmp_path / "new.html").exists() and (tmp_path / "old.html").read_text() == "a page"


@pytest.mark.parametrize("line", ['{"step": 3, "tokens": [1', '{"step": 3, "group": 0, "tokens": [1]}', "[1, 2]", "7"])
def test_a_broken_line_of_samples_is_named(finished, line, capsys):
    """A disk that was full, an older version."""
    with (finished / "samples.jsonl").open("a") as file:
        file.write(line + "\n")
    n = len((finished / "samples.jsonl").read_text().splitlines())
    assert look.main([str(finished)]) == 2 and f"samples.jsonl, line {n}: not a sample" in capsys.readouterr().err


def test_a_line_ends_at_its_end_and_not_at_a_separator_within(finished):
    """U+2028 is a letter of a text; str.splitlines would cut there."""
    path = finished / "samples.jsonl"
    n = len(look.records_of(path))
    path.write_text(path.read_text(encoding="utf-8").replace('"question": "', '"question": "\u2028'), encoding="utf-8")
    assert len(look.records_of(path)) == n


def test_samples_without_their_line_of_metrics_are_no_traceback(finished, capsys):
    """A run that was killed between the two."""
    rows = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (finished / "metrics.jsonl").write_text("".join(rows[:1]))
    assert look.main([str(finished)]) == 2 and "no line of step 3" in capsys.readouterr().err


def test_small_numbers_are_not_shown_as_nothing():
    shown = [look.digits(x, 2) for x in (0.0, 1.0, 0.005, 0.0049, 2e-7)]
    assert shown == ["0.00", "1.00", "0.01", "5e-03", "2e-07"]


@pytest.mark.parametrize(
    "set_to, coloured", [({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_can_be_turned_off(set_to, coloured, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as closed:
        closed.setattr("sys.stdout", None)  # >&-
        assert not look.has_colours()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert look.has_colours()
    with monkeypatch.context() as piped:
        piped.setattr("sys.stdout.isatty", lambda: False)
        for value, kept in (("1", True), ("0", False), ("", False)):
            piped.setenv("FORCE_COLOR", value)
            assert look.has_colours() == kept
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    assert look.has_colours() == coloured


def test_a_run_whose_samples_are_of_before_its_first_step_says_when_they_come(finished, capsys):
    kept = (finished / "samples.jsonl").read_text().splitlines()
    (finished / "samples.jsonl").write_text("\n".join(line for line in kept if json.loads(line)["step"] == 0) + "\n")
    assert look.main([str(finished)]) == 2 and "at each evaluation" in capsys.readouterr().err
    (finished / "samples.jsonl").unlink()
    assert look.main([str(finished)]) == 2 and "at each evaluation" in capsys.readouterr().err
