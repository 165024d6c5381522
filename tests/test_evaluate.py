"""Grading and evaluation: what counts as right, and that the figure does not depend on how it is computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Letters, small_model, spy

import data
import evaluate
import reward
from docs import tiny
from evaluate import accuracy, grade
from reward import extract_answer
from rollout import Rollout, generate
from support.pretrained import load_model
from support.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    return tiny.build(tmp_path_factory.mktemp("tiny"), vocab_size=300, **sizes)


def rollout_of(tokenizer: Tokenizer, texts: list[str], ended: list[bool]) -> Rollout:
    """A rollout that holds the given texts, with an end token where they ended."""
    rows = [tokenizer.encode_completion(text) for text in texts]
    rows = [row if end else row[:-1] for row, end in zip(rows, ended, strict=True)]
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return Rollout([[1]] * len(rows), tokens, mask, torch.zeros(tokens.shape), torch.tensor(ended))


def test_right_answers_earn_1_and_only_when_they_ended(folder):
    """A policy that is paid for "#### 7" without an end token learns to ramble on behind it."""
    tokenizer = Tokenizer(folder)
    problems = [data.Problem("3 + 4?", "7", "3 + 4 = 7 #### 7"), data.Problem("2 * 4?", "8", "2 * 4 = 8 #### 8")]
    texts = ["3 + 4 = 7 #### 7", "3 + 4 = 7 #### 7", "no idea", "2 * 4 = 8 #### 8"]
    records = grade(tokenizer, problems, rollout_of(tokenizer, texts, [True, False, True, True]))
    assert [[r["correct"] for r in samples] for samples in records] == [[True, False], [False, True]]
    assert [[r["reward"] for r in samples] for samples in records] == [[1.0, 0.0], [0.0, 1.0]]
    assert [[r["ended"] for r in samples] for samples in records] == [[True, False], [True, True]]
    assert [r["completion"] for samples in records for r in samples] == texts
    assert records[1][0]["question"] == "2 * 4?" and records[1][0]["answer"] == "8"


def test_a_bonus_is_a_reward_and_no_accuracy(folder, monkeypatch):
    """README's example of a reward of one's own: half a point for a marked answer once made an accuracy of 115 %."""
    monkeypatch.setattr(reward, "reward", lambda text, correct: correct + 0.5 * (extract_answer(text) is not None))
    tokenizer = Tokenizer(folder)
    texts = ["3 + 4 = 7 #### 7", "#### 8", "no idea", "#### 7"]
    records = grade(
        tokenizer, [data.Problem("3 + 4?", "7", "")], rollout_of(tokenizer, texts, [True, True, True, False])
    )
    assert [[r["reward"] for r in samples] for samples in records] == [[1.5, 0.5, 0.0, 0.0]]
    assert [[r["correct"] for r in samples] for samples in records] == [[True, False, False, False]]
    assert accuracy(records)[0] == 0.25


@pytest.mark.parametrize("wrong", [None, float("nan"), float("inf"), "1", torch.ones(2)], ids=str)
def test_a_reward_that_is_no_number_is_named_with_its_completion(folder, monkeypatch, wrong):
    """A forgotten return pays None; NaN would spread to all weights."""
    monkeypatch.setattr(reward, "reward", lambda text, correct: wrong)
    tokenizer = Tokenizer(folder)
    with pytest.raises(ValueError, match=r"reward\(\) of reward.py returned .* for '#### 7'; expected a finite number"):
        grade(tokenizer, [data.Problem("3 + 4?", "7", "")], rollout_of(tokenizer, ["#### 7"], [True]))


@pytest.mark.parametrize("number", [1, True, torch.tensor(1.0), np.float32(1)], ids=str)
def test_a_reward_may_be_any_kind_of_number(folder, monkeypatch, number):
    monkeypatch.setattr(reward, "reward", lambda text, correct: number)
    tokenizer = Tokenizer(folder)
    [[record]] = grade(tokenizer, [data.Problem("3 + 4?", "7", "")], rollout_of(tokenizer, ["#### 7"], [True]))
    assert record["reward"] == 1.0 and type(record["reward"]) is float


def test_a_reward_that_fails_is_no_fault_of_what_the_user_gave(folder, monkeypatch):
    """Its ValueError would be told in one line, as a wrong flag is; the traceback says where it comes from."""
    monkeypatch.setattr(reward, "reward", lambda text, correct: int(text))
    tokenizer = Tokenizer(folder)
    with pytest.raises(RuntimeError, match="of reward.py failed") as failure:
        grade(tokenizer, [data.Problem("3 + 4?", "7", "")], rollout_of(tokenizer, ["#### 7"], [True]))
    assert "invalid literal" in str(failure.value.__cause__)


@pytest.mark.parametrize(
    "text, ended, said",
    [
        ("It is ## 7", True, "one ends: 'It is ## 7'\n  marked as its answer: nothing; expected: '7'"),
        ("#### 7 or 8", True, "one ends: '#### 7 or 8'\n  marked as its answer: '7 or 8'; expected: '7'"),
        ("#### 7", False, "one ends (unfinished): '#### 7'\n  marked as its answer: '7'; expected: '7'"),
    ],
)
def test_where_nothing_is_correct_a_completion_is_shown_beside_its_reference(folder, capsys, text, ended, said):
    """0 % is as often a matter of dress as of ability."""
    tokenizer = Tokenizer(folder)
    texts, ends = ["no end", text], [False, ended]
    records = grade(
        tokenizer, [data.Problem("3 + 4?", "7", "")], rollout_of(tokenizer, texts[not ended :], ends[not ended :])
    )
    evaluate.summarise("mine", 2, records)
    assert said in capsys.readouterr().out
    records[0][0]["correct"] = True
    evaluate.summarise("mine", 2, records)
    assert "no completion was correct" not in capsys.readouterr().out


def test_accuracy_and_its_standard_error_by_hand():
    """Means 1, ½ and 0 of three problems: ½ in all. With a 0 and a 1 more the variance is ¼, the error √(¼ / 5): over
    problems, not samples, and never nothing."""
    records = [[{"correct": c} for c in each] for each in ([True, True], [True, False], [False, False])]
    mean, error = accuracy(records)
    assert mean == 0.5 and error == pytest.approx((0.25 / 5) ** 0.5)
    for right in (True, False):
        mean, error = accuracy([[{"correct": right}]] * 4)
        assert mean == right and error == pytest.approx((5 * 1 / 36 + 25 / 36) ** 0.5 / 30**0.5), "of 6, one is unlike"


def test_the_batch_size_changes_neither_order_nor_texts(folder):
    """Prompts are sorted by length for speed; records come back in the problems' order, with streams of their own."""
    model, tokenizer = load_model(folder, "float32", "cpu")
    model, problems = model.double(), data.load("arith", "test")[:7]
    runs = [
        evaluate.evaluate(model, tokenizer, problems, 12, n_samples=2, temperature=1.0, batch=batch, seed=3)
        for batch in (1, 6, 64)
    ]
    assert runs[0] == runs[1] == runs[2]
    assert [samples[0]["question"] for samples in runs[0]] == [problem.question for problem in problems]


def test_the_command_line_prints_accuracy_and_writes_the_texts(folder, tmp_path, capsys):
    """Mean accuracy and pass@k with their standard errors; one JSON line a completion."""
    out = tmp_path / "texts.jsonl"
    flags = ["--problems", "3", "--samples", "2", "--max-new-tokens", "8", "--device", "cpu", "--out", str(out)]
    assert evaluate.main(["--model", str(folder), "--dataset", "arith", *flags]) == 0
    printed = capsys.readouterr().out
    assert "arith test, 3 problems, 2 samples a problem" in printed and "pass@2: " in printed
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 6


def test_texts_without_a_name_are_written_over_no_others_and_those_with_one_are(tmp_path, capsys, monkeypatch):
    """An hour of sampling is lost to the next evaluation otherwise. Without --model it is the embedded model."""
    monkeypatch.chdir(tmp_path)
    flags = "--problems 1 --max-new-tokens 2 --device cpu".split()
    for name in ("generated.jsonl", "generated_2.jsonl", "generated_3.jsonl"):
        assert evaluate.main(flags) == 0
        assert capsys.readouterr().out.endswith(f"texts in {name}\n")
        Path(name).write_text("kept\n")
    assert evaluate.main([*flags, "--out", "generated_2.jsonl"]) == 0
    assert [path.read_text() == "kept\n" for path in sorted(tmp_path.iterdir())] == [True, False, True]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")])
def test_an_evaluation_that_fails_leaves_no_empty_file(folder, tmp_path, monkeypatch, error):
    """One would take a name; and an older file stays as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: (_ for _ in ()).throw(error))
    assert evaluate.main(["--model", str(folder), "--problems", "1"]) != 0 and not list(tmp_path.iterdir())
    Path("old.jsonl").touch()
    assert evaluate.main(["--model", str(folder), "--problems", "1", "--out", "old.jsonl"]) != 0
    assert [path.name for path in tmp_path.iterdir()] == ["old.jsonl"]


def test_one_sample_a_problem_is_sampled_and_not_greedy(folder, tmp_path, capsys):
    """--samples 1 is asked for to be compared with the sampled accuracy of a run."""
    flags = "--problems 1 --samples 1 --max-new-tokens 2 --device cpu".split()
    assert evaluate.main(["--model", str(folder), *flags, "--out", str(tmp_path / "texts.jsonl")]) == 0
    assert "1 sample a problem at temperature 1:" in capsys.readouterr().out


def test_texts_are_not_written_over_the_data_set(folder, tmp_path, monkeypatch, capsys):
    """By whatever path the two are named."""
    monkeypatch.chdir(tmp_path)
    content = "".join(json.dumps({"question": f"{i}?", "answer": i}) + "\n" for i in range(30))
    Path("own.jsonl").write_text(content)
    flags = ["--model", str(folder), "--max-new-tokens", "2", "--device", "cpu", "--split", "all", "--problems", "1"]
    assert evaluate.main([*flags, "--dataset", "own.jsonl", "--out", str(tmp_path / "own.jsonl")]) == 2
    assert "is the data set itself" in capsys.readouterr().err and Path("own.jsonl").read_text() == content


def test_a_full_disk_does_not_cost_the_accuracy(folder, tmp_path, capsys, monkeypatch):
    """It is printed before the texts are written."""
    flags = ["--problems", "1", "--max-new-tokens", "2", "--device", "cpu", "--out", str(tmp_path / "texts.jsonl")]
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", lambda *given, **named: (_ for _ in ()).throw(full))
    assert evaluate.main(["--model", str(folder), "--dataset", "arith", *flags]) == 1
    said = capsys.readouterr()
    assert "accuracy 0.0%" in said.out and f"{tmp_path / 'texts.jsonl'}: No space left" in said.err


def test_a_temperature_without_samples_is_refused(folder, capsys):
    """A greedy answer has none."""
    assert evaluate.main(["--model", str(folder), "--dataset", "arith", "--temperature", "0.5"]) == 2
    assert "--samples" in capsys.readouterr().err


def test_of_a_file_of_ones_own_the_test_split_is_evaluated_unless_another_is_named(folder, tmp_path, capsys):
    """It may have been trained on, as of every other data set. AIME's 30 problems are all for testing: --split all."""
    own = tmp_path / "aime.jsonl"
    own.write_text("".join(json.dumps({"problem": f"What is {i} + 1?", "answer": i + 1}) + "\n" for i in range(30)))
    flags = ["--model", str(folder), "--dataset", str(own), "--max-new-tokens", "2", "--device", "cpu"]
    assert evaluate.main([*flags, "--split", "all", "--out", str(tmp_path / "texts.jsonl")]) == 0
    assert f"{own} all, 30 problems, greedy" in capsys.readouterr().out
    assert evaluate.main([*flags, "--problems", "1", "--out", str(tmp_path / "texts.jsonl")]) == 0
    said, n = capsys.readouterr(), len(data.load(str(own), "test"))
    assert f"{own} test, 1 problem, greedy" in said.out and n > 1
    assert said.err == f"the test split of {own} has {n} of its 30 problems; --split all takes all\n"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_records_are_the_whole_model_s_completions_problem_by_problem(temperature):
    """No layer skipped, all end tokens, the temperature asked for, and stream seed + i whatever else is evaluated."""
    model, tokenizer = small_model(torch.float64), Letters()
    problems = [data.Problem("NEST" * (5 - i), "7", "") for i in range(4)]  # the longest first, so that sorting moves
    records = evaluate.evaluate(model, tokenizer, problems, 12, 2, temperature, batch=4, seed=3)
    for i, problem in enumerate(problems):
        alone = generate(
            model, [tokenizer.encode_prompt(problem.question)], 2, 12, [0, 12, 20], temperature=temperature, seed=3 + i
        )
        assert [r["completion"] for r in records[i]] == [tokenizer.decode(alone.completion(g)) for g in range(2)]
        assert [r["ended"] for r in records[i]] == alone.ended.tolist()


def test_a_batch_holds_as_many_completions_as_were_asked_for(monkeypatch):
    """Samples count: 5 completions at a time are 2 problems of 2 samples."""
    calls = spy(monkeypatch, evaluate, "generate")
    problems = [data.Problem("NEST", "7", "")] * 5
    evaluate.evaluate(small_model(torch.float32), Letters(), problems, 2, n_samples=2, temperature=1.0, batch=5)
    assert [len(call["prompts"]) for call in calls] == [2, 2, 1]


@pytest.mark.parametrize("sampled", [True, False])
def test_every_flag_of_the_command_line_reaches_the_evaluation(folder, tmp_path, monkeypatch, capsys, sampled):
    """And the figures printed are mean accuracy and the share of problems solved by any sample."""
    called = {}

    def stand_in(model, tokenizer, problems, max_new_tokens, n_samples, temperature, batch, seed, grade):
        called.update(locals())
        correct = [[True, False, False], [False, False, False]] if sampled else [[True], [False]]
        return [[{"correct": c, "reward": 0.5, "ended": True} for c in samples] for samples in correct]

    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    monkeypatch.setattr(evaluate, "make_grader", lambda name: f"grader {name}")
    monkeypatch.setattr(
        evaluate.data, "load", lambda name, split, folder: [data.Problem(f"{name} {split} {i}", "7", "") for i in "123"]
    )
    flags = "--dataset arith --split train --problems 2 --max-new-tokens 9 --batch 5 --seed 7 --dtype bfloat16".split()
    flags += ["--prompt-template", "Q: {question}", "--device", "cpu", "--out", str(tmp_path / "texts.jsonl")]
    flags += ["--grader", "math-verify"]
    flags += ["--samples", "3", "--temperature", "0.5"] if sampled else []
    assert evaluate.main(["--model", str(folder), *flags]) == 0
    assert called["model"].lm_head.weight.dtype == torch.bfloat16 and called["tokenizer"].template == "Q: {question}"
    assert [problem.question for problem in called["problems"]] == ["arith train 1", "arith train 2"]
    assert called["grade"] == "grader math-verify"
    given = [called[name] for name in ("max_new_tokens", "n_samples", "temperature", "batch", "seed")]
    assert given == ([9, 3, 0.5, 5, 7] if sampled else [9, 1, 0.0, 5, 7])
    printed = capsys.readouterr().out
    said = ["accuracy 16.7%", "pass@3: 50.0%"] if sampled else ["greedy: accuracy 50.0%"]
    assert all(figure in printed for figure in said)
