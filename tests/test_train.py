"""The training loop: its gradient, its optimiser, its files, and what becomes of it in trouble."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import small_model

import train
from data import tiny
from losses import group_advantages
from model import Decoder
from rollout import generate
from train import METRICS, MasterWeights, Settings, accumulate_gradient

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
REWARDS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])  # the second group is silent
GRADIENTS = [
    {"gradient": "on-policy"},
    {"gradient": "is", "is_level": "token"},
    {"gradient": "is", "is_level": "sequence"},
    {"gradient": "is", "is_level": "sequence", "is_cap": 0.0},
    {"gradient": "retrace", "retrace_trace": "product"},
    {"gradient": "retrace", "retrace_trace": "token"},
]


def gradient(model: Decoder, rollout, rewards=REWARDS, **settings) -> torch.Tensor:
    """The whole gradient of one batch as a vector, through the loop's own function."""
    s = Settings(**settings)
    model.zero_grad()
    weights = MasterWeights(model)
    accumulate_gradient(model, weights, rollout, group_advantages(rewards, s.advantage).flatten(), s)
    return torch.cat([p.grad.flatten() for p in weights.masters]).double()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("settings", GRADIENTS[1:])
def test_with_nothing_skipped_all_gradients_are_the_on_policy_one(settings):
    """Invariant 1 in float32: the sampler's cached pass and the differentiated one agree, so ρ = 1 to rounding."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 16, [0], seed=0)
    reference = gradient(model, rollout, gradient="on-policy")
    assert relative(gradient(model, rollout, **settings), reference) < 1e-3
    _, log_rho, _ = accumulate_gradient(model, MasterWeights(model), rollout, REWARDS.flatten(), Settings(**settings))
    assert log_rho.abs().max() < 1e-4


@pytest.mark.parametrize("settings", GRADIENTS[1:])
def test_with_layers_skipped_the_gradients_differ(settings):
    """The corrections correct: were the weights lost on the way, all gradients would be the on-policy one."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 16, [0], skip=(False, True, True, False), seed=0)
    assert relative(gradient(model, rollout, **settings), gradient(model, rollout, gradient="on-policy")) > 0.05


@pytest.mark.parametrize("settings", GRADIENTS)
@pytest.mark.parametrize("normaliser", ["tokens", "completions", "7"])
def test_the_gradient_does_not_depend_on_micro_batches(settings, normaliser):
    """Invariant 5: Z is the whole batch's, silent groups included, and padding is never seen."""
    model = small_model(torch.float64)
    rollout = generate(model, PROMPTS, 4, 16, [0, 1], skip=(False, True, False, False), seed=0)
    settings = settings | {"normaliser": normaliser}
    whole = gradient(model, rollout, micro_batch=12, **settings)
    for size in (1, 5):
        assert relative(gradient(model, rollout, micro_batch=size, **settings), whole) < 1e-5  # masters are float32


def test_silent_groups_get_a_forward_pass_for_the_diagnostics_and_no_backward_pass(monkeypatch):
    """Its log-ratios and entropy are part of the figures; a backward pass would add 0."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 16, [0], skip=(False, True, False, False), seed=0)
    with_gradient, original = [], train.completion_logprobs

    def spy(model, prompts, *rest):
        with_gradient.append((len(prompts), torch.is_grad_enabled()))
        return original(model, prompts, *rest)

    monkeypatch.setattr(train, "completion_logprobs", spy)
    advantages = group_advantages(REWARDS).flatten()
    loss, log_rho, entropy = accumulate_gradient(
        model, MasterWeights(model), rollout, advantages, Settings(micro_batch=8)
    )
    assert with_gradient == [(8, True), (4, False)]
    assert (log_rho[4:8][rollout.mask[4:8]] != 0).all() and (entropy[4:8][rollout.mask[4:8]] > 0).all()


def test_the_gradient_is_that_of_the_equations_written_out_naively():
    """E3 with E6, token by token in float64, one completion at a time, by autograd on the plainest code there is."""
    model, tau = small_model(torch.float64), 0.8
    skip = (False, False, True, False)
    rollout = generate(model, PROMPTS, 4, 16, [0], temperature=tau, skip=skip, seed=3)
    fast = gradient(model, rollout, gradient="is", is_cap=1.5, advantage="mean", temperature=tau)

    model.zero_grad()
    loss, tokens = 0.0, 0
    for row, prompt in enumerate(rollout.prompts):
        advantage = (REWARDS - REWARDS.mean(1, keepdim=True)).flatten()[row]
        completion = rollout.tokens[row, rollout.mask[row]].tolist()
        for t, token in enumerate(completion):
            context = torch.tensor([prompt + completion[:t]])
            log_pi = (model(context)[0, -1] / tau).log_softmax(-1)[token]
            log_eta = (model(context, skip=skip)[0, -1] / tau).log_softmax(-1)[token]
            rho = (log_pi - log_eta).exp().item()
            loss = loss - min(rho, 1.5) * advantage * log_pi
            tokens += 1
    (loss / tokens).backward()
    assert relative(fast, torch.cat([p.grad.flatten() for p in model.parameters()])) < 1e-5


def test_updates_of_1e_6_change_bfloat16_weights():
    """Invariant 6: an update too small for bfloat16 is kept in the float32 masters and shows once it has added up."""
    model = small_model(torch.bfloat16)
    weights = MasterWeights(model)
    masters, working = [m.clone() for m in weights.masters], [p.clone() for p in model.parameters()]
    steps = 300
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        weights.collect_gradients()
        weights.step(lr=1e-6, max_grad_norm=1.0)
        if step == 0:
            assert all((m != before).any() for m, before in zip(weights.masters, masters, strict=True))
    for master, before in zip(weights.masters, masters, strict=True):
        assert (before - master).mean() == pytest.approx(steps * 1e-6, rel=0.2)
    assert any((p != before).any() for p, before in zip(model.parameters(), working, strict=True))
    assert all(torch.equal(p, m.bfloat16()) for p, m in zip(model.parameters(), weights.masters, strict=True))


def test_an_infinite_gradient_never_reaches_the_weights():
    """The norm is looked at before the step."""
    model = small_model(torch.float32)
    weights, before = MasterWeights(model), [p.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    with pytest.raises(FloatingPointError):
        weights.step(lr=1.0, max_grad_norm=1.0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_every_epoch_draws_every_problem_once_in_a_new_order():
    """And a batch is a function of the seed and the step, so that a run can be taken up anywhere."""
    problems = list(range(10))
    epochs = [
        [p for step in range(1 + 5 * e, 6 + 5 * e) for p in train.draw(problems, 2, step, seed=0)] for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == problems
    assert epochs[0] != epochs[1]
    assert train.draw(problems, 2, 3, seed=0) == epochs[0][4:6]


# ---- whole runs, on a small model with random weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    return tiny.build(tmp_path_factory.mktemp("tiny"), vocab_size=300, **sizes)


@pytest.fixture
def run(checkpoint, tmp_path):
    """Runs train.main on a small model with few steps; returns its exit status and output folder."""

    def run(*flags: str, out: str = "out") -> tuple[int, Path]:
        flags = ["--model", str(checkpoint), "--device", "cpu", *flags, "--out", str(tmp_path / out)]
        small = ["--max-new-tokens", "8", "--eval-problems", "4", "--prompts", "2", "--samples", "2", "--steps", "3"]
        return train.main([*small, *flags]), tmp_path / out

    return run


@pytest.fixture
def easy_reward(monkeypatch):
    """Rewards completions with an even number of characters, so that groups of a random model have a signal."""
    original = train.score

    def score(*arguments):
        records = original(*arguments)
        for record in (record for samples in records for record in samples):
            record["reward"] = float(len(record["completion"]) % 2 == 0)
        return records

    monkeypatch.setattr(train, "score", score)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_metrics_samples_settings_and_a_checkpoint(run, easy_reward, checkpoint):
    """A line a step with fixed keys, accuracy before and after, and a folder that loads as it came."""
    status, out = run("--eval-every", "2", "--warmup-epochs", "0", "--gradient", "retrace")
    assert status == 0
    rows = metrics(out)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(tuple(row) == METRICS for row in rows)
    assert [row["test_accuracy"] is not None for row in rows] == [True, False, True, True]
    assert all(row["tokens_per_second"] > 0 and 0 < row["acceptance"] < 1 for row in rows[1:])
    assert all(len(row["skipped_layers"]) == round(0.3 * 4) for row in rows[1:])
    assert json.loads((out / "config.json").read_text())["gradient"] == "retrace"
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {"step", "mode", "question", "answer", "completion", "ended", "reward"} == set(samples[0])
    trained, initial = Decoder.from_pretrained(out / "checkpoint"), Decoder.from_pretrained(checkpoint)
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), initial.parameters(), strict=True))
    assert (out / "checkpoint" / "tokenizer.json").exists()


def test_the_same_seed_gives_the_same_run(run, easy_reward):
    """Invariant 7: every figure but the clock's, and every weight."""
    outs = [
        run("--dtype", "bfloat16", "--seed", seed, out=out)[1] for seed, out in (("3", "a"), ("3", "b"), ("4", "c"))
    ]

    def untimed(out):
        return [{k: v for k, v in row.items() if "second" not in k} for row in metrics(out)]

    assert untimed(outs[0]) == untimed(outs[1]) != untimed(outs[2])
    models = [Decoder.from_pretrained(out / "checkpoint").state_dict() for out in outs]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_with_skip_ratio_0_the_metrics_say_on_policy(run, easy_reward):
    """In float32 max |log ρ| is rounding, acceptance and ESS are 1."""
    _, out = run("--skip-ratio", "0")
    first = metrics(out)[1]
    assert first["max_abs_log_ratio"] < 1e-4 and first["skipped_layers"] == []
    assert first["acceptance"] == pytest.approx(1, abs=1e-4) and first["ess"] == pytest.approx(1, abs=1e-3)


def test_a_batch_without_a_signal_takes_no_step(run, checkpoint):
    """A random model is never right: no gradient, null where a figure is undefined, weights as they were."""
    status, out = run()
    assert status == 0
    for row in metrics(out)[1:]:
        assert row["stepped"] is False and row["loss"] is None and row["grad_norm"] is None
        assert row["silent_groups"] == 1 and row["acceptance"] is not None
    trained, initial = Decoder.from_pretrained(out / "checkpoint"), Decoder.from_pretrained(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), initial.parameters(), strict=True))


def test_warm_up_teaches_the_rationales(run, monkeypatch):
    """Supervised learning from random weights on 64 problems: the loss falls by a lot, in the same metrics file."""
    load = train.data.load
    monkeypatch.setattr(train.data, "load", lambda name, split, folder: load(name, split, folder)[:64])
    _, out = run("--warmup-epochs", "6", "--warmup-lr", "0.01", "--steps", "0")
    losses = [row["loss"] for row in metrics(out) if row["phase"] == "warmup"]
    assert len(losses) == 24
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("gradient", ["on-policy", "is", "retrace"])
def test_the_reward_rises(run, monkeypatch, gradient):
    """The whole loop learns: paid for completions that begin with a small letter, a random model soon writes them."""
    original = train.score

    def score(*arguments):
        records = original(*arguments)
        for record in (record for samples in records for record in samples):
            record["reward"] = float(record["completion"][:1].islower())
        return records

    monkeypatch.setattr(train, "score", score)
    flags = "--prompts 4 --samples 8 --max-new-tokens 2 --steps 20 --lr 0.01 --micro-batch 32".split()
    flags += ["--prompt-template", "{question}"]
    _, out = run(*flags, "--gradient", gradient, "--eval-every", "1000")
    rewards = [row["reward"] for row in metrics(out)[1:]]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.3


def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(
    run, easy_reward, monkeypatch, capsys
):
    """One line, exit status 1; what is written is what was last evaluated, not the weights that came to NaN."""
    original = MasterWeights.step

    def step(self, *arguments):
        norm = original(self, *arguments)
        self.masters[-1].data.fill_(math.nan)
        return norm

    monkeypatch.setattr(MasterWeights, "step", step)
    status, out = run()
    assert status == 1
    assert all(p.isfinite().all() for p in Decoder.from_pretrained(out / "checkpoint").parameters())
    captured = capsys.readouterr()
    assert re.fullmatch("error: .*not finite; the last good checkpoint is kept", captured.err.strip().splitlines()[-1])
    assert captured.out.strip().endswith("checkpoint (step 0)")


def test_a_model_that_is_not_finite_from_the_start_leaves_no_checkpoint(run, checkpoint, tmp_path, capsys):
    """There is no good one."""
    model = Decoder.from_pretrained(checkpoint)
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    train.Tokenizer(checkpoint).save(tmp_path / "broken")
    status, out = run("--model", str(tmp_path / "broken"))
    assert status == 1 and not (out / "checkpoint").exists()
    assert "logits are not finite" in capsys.readouterr().err


def test_a_full_disk_is_one_line(run, monkeypatch, capsys):
    """No traceback; and no half-written folder under the checkpoint's name."""

    def save_pretrained(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Decoder, "save_pretrained", save_pretrained)
    status, out = run()
    assert status == 1 and not (out / "checkpoint").exists()
    assert "No space left" in capsys.readouterr().err.strip().splitlines()[-1]


def interrupt_in_step_2(monkeypatch, error):
    calls, original = [], train.generate

    def generate(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(*arguments, **keywords)

    monkeypatch.setattr(train, "generate", generate)


def test_ctrl_c_leaves_a_checkpoint(run, easy_reward, monkeypatch):
    """Nothing that was computed is lost; the exit status is the shell's for an interrupt."""
    interrupt_in_step_2(monkeypatch, KeyboardInterrupt())
    status, out = run()
    assert status == 130
    assert Decoder.from_pretrained(out / "checkpoint")
    assert [row["step"] for row in metrics(out)] == [0, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_which_setting_to_lower(run, easy_reward, monkeypatch, capsys, error):
    """By phase: here sampling ran out, which --micro-batch would not help."""
    interrupt_in_step_2(monkeypatch, error)
    status, out = run()
    assert status == 1 and (out / "checkpoint").exists()
    assert "--samples, --prompts or --max-new-tokens" in capsys.readouterr().err


def test_an_error_of_our_own_is_not_hidden_and_loses_nothing(run, easy_reward, monkeypatch, tmp_path):
    """A traceback is right for a bug; the checkpoint is written all the same."""
    interrupt_in_step_2(monkeypatch, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run()
    assert Decoder.from_pretrained(tmp_path / "out" / "checkpoint")


def test_without_a_model_a_tiny_one_is_made(tmp_path, capsys):
    """`python train.py --dataset arith` needs neither a network nor a checkpoint."""
    flags = ["--dataset", "arith", "--steps", "1", "--prompts", "2", "--samples", "2", "--max-new-tokens", "4"]
    assert train.main([*flags, "--eval-problems", "2", "--out", str(tmp_path / "out")]) == 0
    assert "random weights" in capsys.readouterr().err
