"""The training loop: its gradient, its optimiser, its files, and what becomes of it in trouble."""

import json
import math
import re
import shutil
import signal
import weakref
from pathlib import Path

import pytest
import torch
from conftest import Letters, gradient_of, pay, small_model, spy

import data
import evaluate
import model as model_module
import nested
import reward
import run as run_module
import train
from data import draw_problems
from losses import WEIGHTS, gradient_weights, group_advantages, log_ratio, normaliser, policy_loss
from model import Decoder
from rollout import Rollout, completion_logprobs, generate
from run import Run, set_up
from skip import Bypass, fit_bypass
from support import log as log_module
from support.batches import micro_batches, pad_right
from support.log import METRICS, Log
from support.optimizer import Optimizer
from support.pretrained import parse_config
from support.settings import Settings
from support.signals import SIGNALS, terminable
from support.tokenizer import Tokenizer

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
REWARDS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])  # the second group has no variance
GRADIENTS = [*({"gradient": kind} for kind in WEIGHTS), {"gradient": "is-sequence", "cap": 0.0}]
GRADIENTS.append({"gradient": "is", "bound": "mask"})


def gradient(model: Decoder, rollout, rewards=REWARDS, **settings) -> torch.Tensor:
    """The whole gradient of one batch as a vector, through the loop's own function."""
    s = Settings(**settings)
    return gradient_of(model, rollout, group_advantages(rewards, s.advantage).flatten(), s).double()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("settings", GRADIENTS[1:])
def test_with_nothing_skipped_all_gradients_are_the_on_policy_one(settings):
    """Invariant 1 in float32: the sampler's cached pass and the differentiated one agree, so ρ = 1 to rounding."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 16, [0], seed=0)
    reference = gradient(model, rollout, gradient="on-policy")
    assert relative(gradient(model, rollout, **settings), reference) < 1e-3
    figures, _ = train.update(model, Optimizer(model), rollout, REWARDS.flatten(), Settings(**settings), lr=0.0)
    assert figures["max_abs_log_ratio"] < 1e-4


@pytest.mark.parametrize("settings", GRADIENTS[1:])
def test_with_layers_skipped_the_gradients_differ(settings):
    """The corrections correct: were the weights lost on the way, all gradients would be the on-policy one."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 16, [0], skip=(False, True, True, False), seed=0)
    assert relative(gradient(model, rollout, **settings), gradient(model, rollout, gradient="on-policy")) > 0.05
    if "bound" in settings:
        assert relative(gradient(model, rollout, **settings), gradient(model, rollout, gradient="is")) > 0.05


@pytest.mark.parametrize("settings", GRADIENTS)
@pytest.mark.parametrize(
    "normaliser", ["tokens", *(pytest.param(z, marks=pytest.mark.slow) for z in ("completions", "7"))]
)
def test_the_gradient_does_not_depend_on_micro_batches(settings, normaliser):
    """Invariant 5: Z is the whole batch's, zero-variance groups included, and padding is never seen."""
    model = small_model(torch.float64)
    rollout = generate(model, PROMPTS, 4, 16, [0, 1], skip=(False, True, False, False), seed=0)
    settings = settings | {"normaliser": normaliser}
    whole = gradient(model, rollout, micro_batch_tokens=10_000, **settings)
    for budget in (1, 60):  # a completion at a time; five of 16 tokens
        assert (
            relative(gradient(model, rollout, micro_batch_tokens=budget, **settings), whole) < 1e-5
        )  # masters are float32


def test_zero_variance_groups_get_a_forward_pass_for_the_diagnostics_and_no_backward_pass(monkeypatch):
    """Its log-ratios and entropy are part of the figures; a backward pass would add 0."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 16, [0], skip=(False, True, False, False), seed=0)
    with_gradient, original = [], train.completion_logprobs

    def spy(model, prompts, *rest):
        with_gradient.append((len(prompts), torch.is_grad_enabled()))
        return original(model, prompts, *rest)

    monkeypatch.setattr(train, "completion_logprobs", spy)
    figures, _ = train.update(model, Optimizer(model), rollout, group_advantages(REWARDS).flatten(), Settings(), lr=0.0)
    assert with_gradient == [(8, True), (4, False)]
    logprobs, entropy = original(model, rollout.prompts, rollout.tokens, rollout.mask)
    assert figures["entropy"] == pytest.approx(entropy[rollout.mask].mean().item(), rel=1e-5)
    assert figures["k1"] == pytest.approx((rollout.logprobs - logprobs)[rollout.mask].mean().item(), rel=1e-4)


def test_the_gradient_is_that_of_the_equations_written_out_naively():
    """E3 with E6, token by token in float64, one completion at a time, by autograd on the plainest code there is."""
    model, tau = small_model(torch.float64), 0.8
    skip = (False, False, True, False)
    rollout = generate(model, PROMPTS, 4, 16, [0], temperature=tau, skip=skip, seed=3)
    fast = gradient(model, rollout, gradient="is", cap=1.5, advantage="mean", temperature=tau)

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
    weights = Optimizer(model)
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
    weights, before = Optimizer(model), [p.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    with pytest.raises(FloatingPointError):
        weights.step(lr=1.0, max_grad_norm=1.0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_every_epoch_draws_every_problem_once_in_a_new_order():
    """And a batch is a function of the seed and the step, so that a run can be taken up anywhere."""
    problems = list(range(10))
    epochs = [
        [p for step in range(1 + 5 * e, 6 + 5 * e) for p in draw_problems(problems, 2, step, seed=0)] for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == problems
    assert epochs[0] != epochs[1]
    assert draw_problems(problems, 2, 3, seed=0) == epochs[0][4:6]
    assert [p for step in range(1, 6) for p in draw_problems(problems, 2, step, seed=1)] not in epochs, (
        "nor another seed's"
    )


def metrics(out: Path, phase: str = "reinforce") -> list[dict]:
    """The lines of a run's steps, or of its evaluations or warm-up."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]


# ---- the loop's own parts, on a model of 29 letters


@pytest.fixture
def loop(tmp_path):
    """A function that makes a Run of a small model, ten problems to train on and five to test; it takes settings."""

    def loop(**settings) -> Run:
        small = {"prompts": 3, "samples": 4, "max_new_tokens": 6, "skip_ratio": 0.25, "eval_problems": 3}
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        problems = {
            split: [data.Problem(split + "CDEFGHIJKL"[i], "7", "IS" * (i + 1)) for i in range(n)]
            for split, n in (("TRAIN", 10), ("TEST", 5), ("WORDINGS", 5))
        }
        s = Settings(**small | {"eval_every": 1000} | settings).decided()
        tests = {"test": problems["TEST"], "wordings": problems["WORDINGS"]}
        run = Run(s, small_model(torch.float32), Letters(), problems["TRAIN"], tests, Log(out))
        run.nested.valid = [1, 2]
        return run

    return loop


@pytest.fixture
def paid(monkeypatch):
    """Pays the completions of a batch of 3 x 4 by the table REWARDS, whatever they say."""
    pay(monkeypatch, lambda text, p, g: REWARDS[p, g])


def test_every_batch_is_sampled_under_a_mask_and_from_streams_of_its_own(loop, monkeypatch):
    """Masks and streams are functions of seed and step: none is met twice, in no step and under no other seed; nor are
    the masks of one seed those of another, shifted by a step."""
    calls, runs = spy(monkeypatch, train, "generate"), [loop(steps=12, seed=seed) for seed in (0, 1)]
    for run in runs:
        train.reinforce(run)
    rows = [row for run in runs for row in metrics(run.log.folder)]
    nested = [call for call in calls if call["skip"]]
    masks = [[layer for layer in range(4) if call["skip"][layer]] for call in nested]
    assert masks == [row["skipped_layers"] for row in rows]
    assert all(mask in ([1], [2]) for mask in masks)
    first, second = masks[:12], masks[12:]
    assert [1] in first and [2] in first
    assert all(first[shift:] != second[: 12 - shift] and second[shift:] != first[: 12 - shift] for shift in range(4))
    streams = [seed for call in nested for seed in range(call["seed"], call["seed"] + 3)]
    assert len(set(streams)) == 24 * 3


def test_a_batch_is_sampled_from_the_train_split_as_the_settings_say(loop, monkeypatch):
    """The number of samples, their length, τ and all end tokens; never a problem of the test split."""
    calls, run = spy(monkeypatch, train, "generate"), loop(steps=3, samples=2, max_new_tokens=5, temperature=0.7)
    train.reinforce(run)
    known = [run.tokenizer.encode_prompt(problem.question) for problem in run.train]
    for call in calls:
        assert len(call["prompts"]) == 3 and all(prompt in known for prompt in call["prompts"])
        given = [call[name] for name in ("n_samples", "max_new_tokens", "temperature", "eos_ids")]
        assert given == [2, 5, 0.7, [0, 12, 20]]


def test_accuracies_are_of_the_full_model_on_the_first_problems_of_each_split(loop, monkeypatch):
    """Measured on what was trained on, or at another temperature, it would be another figure under the same name."""
    calls, run = spy(monkeypatch, evaluate, "evaluate"), loop(eval_problems=3, eval_every=1, temperature=0.7, steps=2)
    train.reinforce(run)
    everywhere, test = ["test", "wordings"], ["test"]
    assert [(call["problems"], call["temperature"]) for call in calls] == [
        (run.test_splits[split][:3], temperature)
        for splits in (everywhere, test, everywhere)
        for split in splits
        for temperature in (0.0, 0.7)
    ]
    assert all(call["model"] is run.model and (call["max_new_tokens"], call["n_samples"]) == (6, 1) for call in calls)
    rows = metrics(run.log.folder, "evaluate")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row, splits in zip(rows, (everywhere, test, everywhere), strict=True):
        known = {key for key in row if "accuracy" in key and row[key] is not None}
        assert known == {
            f"{split}_accuracy{mode}{se}" for split in splits for mode in ("", "_sampled") for se in ("", "_se")
        }
        assert all(row[key] == 0.0 for key in known if "_se" not in key)


def test_the_full_model_is_compared_on_the_nested_one_s_batch_and_streams(loop, monkeypatch):
    """At an evaluation, where layers were skipped: the same prompts and numbers, no mask, nothing else changed."""
    calls, run = spy(monkeypatch, train, "generate"), loop(steps=3, eval_every=2)
    compared = spy(monkeypatch, evaluate, "generate")
    train.reinforce(run)
    rows = metrics(run.log.folder)
    compared = [call for call in compared if call["n_samples"] == run.settings.samples]  # not an evaluation's
    assert len(calls) == 3 and all(any(call["skip"]) for call in calls)
    for skipping, full in zip(calls[1:], compared, strict=True):
        assert skipping | {"skip": None, "bypass": None, "full_prefill": False} == full
    assert [row["full_mean_length"] is None for row in rows] == [True, False, False]
    untrained = loop(steps=1, lr=0.0)
    train.reinforce(untrained)
    [row] = metrics(untrained.log.folder)
    rollout = generate(
        **compared[0] | {"model": untrained.model, "seed": calls[0]["seed"], "prompts": calls[0]["prompts"]}
    )
    assert row["full_mean_length"] == pytest.approx(rollout.mask.sum().item() / 12)
    assert row["full_reward"] == 0.0 and row["full_tokens_per_second"] > 0
    train.reinforce(full := loop(steps=1, skip_ratio=0.0))
    assert metrics(full.log.folder)[0]["full_reward"] is None, "nothing to compare"


@pytest.mark.parametrize("kind", ["grpo", "mean", "rloo"])
def test_the_advantage_asked_for_reaches_its_completion(loop, paid, monkeypatch, kind):
    """Row p·G + g is sample g of problem p, and A is of the kind of --advantage."""
    calls = spy(monkeypatch, train, "update")
    train.reinforce(loop(steps=1, advantage=kind))
    torch.testing.assert_close(calls[0]["advantages"], group_advantages(REWARDS, kind).flatten())


@pytest.mark.parametrize(
    "settings, arguments",
    [
        ({"gradient": "is", "cap": 0.9}, {"kind": "is", "cap": 0.9}),
        ({"gradient": "is", "cap": 0.0}, {"kind": "is", "cap": None}),
        ({"gradient": "is"}, {"kind": "is", "cap": 2.0}),
        ({"gradient": "is-sequence"}, {"kind": "is-sequence"}),
        ({"gradient": "is-sequence", "cap": 1.0}, {"kind": "is-sequence", "cap": 1.0}),
        ({"gradient": "retrace"}, {"kind": "retrace"}),
        ({"gradient": "retrace", "retrace_lambda": 0.5}, {"kind": "retrace", "lam": 0.5}),
        ({"gradient": "retrace-token"}, {"kind": "retrace-token"}),
    ],
)
def test_loss_and_gradient_are_those_of_the_settings(settings, arguments):
    """Every flag of the correction reaches it, and the loss that is logged is the whole batch's."""
    model = small_model(torch.float32)
    rollout = generate(model, PROMPTS, 4, 8, [0], skip=(False, True, True, False), seed=0)
    advantages, settings = group_advantages(REWARDS).flatten(), Settings(micro_batch_tokens=30, **settings)
    loss = train.update(model, Optimizer(model), rollout, advantages, settings, lr=0.0)[0]["loss"]
    accumulated = gradient_of(model, rollout, advantages, settings)
    logprobs, _ = completion_logprobs(model, rollout.prompts, rollout.tokens, rollout.mask)
    w = gradient_weights(log_ratio=log_ratio(logprobs, rollout.logprobs, rollout.mask), mask=rollout.mask, **arguments)
    expected = policy_loss(logprobs, w, advantages, rollout.mask, normaliser(rollout.mask))
    expected.backward()
    log_rho = log_ratio(logprobs, rollout.logprobs, rollout.mask)
    assert log_rho.max() > math.log(2) and log_rho.sum(dim=1).max() > 0, (
        "caps of 2 a token and of 1 a sequence are reached"
    )
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert relative(accumulated, torch.cat([p.grad.flatten() for p in model.parameters()])) < 1e-4


def test_completions_of_similar_length_share_a_micro_batch():
    """Padding is computed like any token: a short completion beside a long one would cost as much."""
    mask = torch.arange(6) < torch.tensor([5, 1, 3, 4, 2, 6])[:, None]
    has_advantage = torch.tensor([True, True, False, True, True, True])
    batches = micro_batches([[1]] * 6, mask, has_advantage, 11)
    assert batches == [([1, 4], True), ([3, 0], True), ([5], True), ([2], False)]


def test_the_learning_rate_rises_linearly_and_stays(loop, paid, monkeypatch):
    """Step 1 of 5 takes a fifth of it; the metrics say what was taken."""
    taken, run = [], loop(steps=7, lr=0.4, max_grad_norm=0.7)
    monkeypatch.setattr(Optimizer, "step", lambda self, lr, max_grad_norm: taken.append((lr, max_grad_norm)) or 1.0)
    train.reinforce(run)
    assert [lr for lr, _ in taken] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4, 0.4, 0.4])
    assert [row["lr"] for row in metrics(run.log.folder)] == [lr for lr, _ in taken]
    assert {norm for _, norm in taken} == {0.7}


@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_the_gradient_is_clipped_to_the_norm_asked_for(bound):
    """AdamW's first update hides a constant factor; its running mean, a tenth of the gradient, shows it."""
    weights = Optimizer(small_model(torch.float32))
    for parameter in weights.masters:
        parameter.grad = torch.ones_like(parameter)
    norm = weights.step(lr=1e-3, max_grad_norm=bound)
    assert norm == pytest.approx(sum(p.numel() for p in weights.masters) ** 0.5), "the norm before clipping"
    mean = torch.cat([weights.adamw.state[p]["exp_avg"].flatten() for p in weights.masters])
    assert mean.norm().item() == pytest.approx(min(norm, bound) / 10, rel=1e-4)


def test_a_step_without_a_gradient_leaves_the_weights_and_forgets_it():
    """No weight decay: it would shrink a model that earns nothing. Nor does a gradient outlive its step."""
    model = small_model(torch.float32)
    weights, before = Optimizer(model), [p.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weights.step(lr=0.1, max_grad_norm=1.0)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_gradients_of_micro_batches_are_added_up_in_float32():
    """1 + 2⁻⁹ + 2⁻⁹ is 1 in bfloat16, and what a backward pass left behind must not be counted with the next one's."""
    model = small_model(torch.bfloat16)
    weights = Optimizer(model)
    for part in (1.0, 2**-9, 2**-9):
        for parameter in model.parameters():
            assert parameter.grad is None
            parameter.grad = torch.full_like(parameter, part)
        weights.collect_gradients()
    weights.reduce_gradients()
    assert all((master.grad == 1 + 2**-8).all() for master in weights.masters)


def test_warm_up_learns_rationales_and_their_end_from_the_train_split(loop, monkeypatch):
    """Prompts in the format of reinforced learning, tokens with the end token, every problem once an epoch."""
    calls, run = (
        spy(monkeypatch, train, "completion_logprobs"),
        loop(warmup_epochs=2, warmup_batch=5, micro_batch_tokens=300),
    )
    train.warm_up(run)
    seen = [
        (tuple(prompt), tuple(tokens[mask].tolist()))
        for call in calls
        for prompt, tokens, mask in zip(call["prompts"], call["tokens"], call["mask"], strict=True)
    ]
    expected = {
        (tuple(run.tokenizer.encode_prompt(p.question)), tuple(run.tokenizer.encode_completion(p.rationale)))
        for p in run.train
    }
    assert len(seen) == 2 * 10 and set(seen[:10]) == set(seen[10:20]) == expected


def test_the_warm_up_s_loss_is_the_mean_over_the_batch_s_tokens(loop):
    """E3 with w = A = 1, whatever the micro-batches: those of short rationales must not weigh more."""
    rows = []
    for budget in (1, 300, 10_000):
        run = loop(warmup_epochs=1, warmup_batch=10, micro_batch_tokens=budget)
        if not rows:
            logprobs = []
            for problem in run.train:
                prompt, completion = (
                    run.tokenizer.encode_prompt(problem.question),
                    run.tokenizer.encode_completion(problem.rationale),
                )
                table = run.model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1].log_softmax(-1)
                logprobs += table[range(len(completion)), completion].tolist()
        train.warm_up(run)
        rows += metrics(run.log.folder, "warmup")
    assert [row["loss"] for row in rows] == pytest.approx([-sum(logprobs) / len(logprobs)] * 3, rel=1e-4)
    assert [row["grad_norm"] for row in rows] == pytest.approx([rows[0]["grad_norm"]] * 3, rel=1e-3)
    assert rows[0]["tokens"] == len(logprobs)


def test_the_warm_up_s_rate_rises_for_a_twentieth_and_falls_to_nothing(loop, monkeypatch):
    """Of 40 steps two rise; a rate that stayed at its peak would leave a noisy model to start from."""
    taken, run = [], loop(warmup_epochs=40, warmup_batch=2, warmup_lr=0.4)
    run.train = run.train[:2]
    monkeypatch.setattr(Optimizer, "step", lambda self, lr, max_grad_norm: taken.append(lr) or 1.0)
    train.warm_up(run)
    assert taken == pytest.approx([0.2] + [0.4 * (1 - step / 40) for step in range(1, 40)])


def test_the_order_of_the_problems_follows_the_seed():
    """Runs of several seeds should differ in it as well."""
    problems = list(range(10))
    assert draw_problems(problems, 10, 1, seed=0) != draw_problems(problems, 10, 1, seed=1)


def test_figures_of_a_batch_by_hand():
    """Of all completions, silent groups included; a group is silent if all of its advantages are 0."""
    lengths = torch.tensor([1, 2, 3, 3, 1, 2])
    mask = torch.arange(3) < lengths[:, None]
    rollout = Rollout([[1]] * 6, torch.zeros(6, 3), mask, torch.zeros(6, 3), torch.arange(6) != 3)
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]])
    figures = train.describe(rollout, rewards, group_advantages(rewards, "mean"), seconds=2.0)
    by_hand = {"reward": 0.75, "zero_variance_groups": 0.5, "unfinished": 1 / 6, "mean_length": 2, "tokens": 12}
    by_hand |= {"tokens_per_second": 6}
    assert {name: figures[name] for name in by_hand} == pytest.approx(by_hand)


def test_a_line_holds_the_seconds_since_the_last_one_and_null_for_what_is_not_finite(tmp_path, monkeypatch):
    """A phase entered twice counts twice, once; NaN is no JSON, and readers of the file would stop at it."""
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(log_module.time, "perf_counter", lambda: next(clock))
    log, figures = Log(tmp_path), {"loss": math.nan, "k1": math.nan, "ratio_max": math.inf, "seconds_update": 1.0}
    for visits in (2, 1):
        for _ in range(visits):
            with log.phase("sample"):
                pass
        assert log.write("warmup", visits, 9, figures | {"loss": 0.0}, []).startswith(f"warm-up {visits}/9")
    rows = metrics(tmp_path, "warmup")
    assert [row["seconds_sample"] for row in rows] == [3.0, 4.0]
    assert all(row["k1"] is None and row["ratio_max"] is None and row["seconds_grade"] is None for row in rows)


def test_tokens_per_second_are_those_of_sampling_and_both_kinds_of_samples_are_kept(loop):
    """Seconds of scoring or of an evaluation would make sampling look slow."""
    run = loop(steps=2, eval_every=1)
    train.reinforce(run)
    for row in metrics(run.log.folder):
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds_sample"])
    kept = [json.loads(line) for line in (run.log.folder / "samples.jsonl").read_text().splitlines()]
    test, wordings = ([f"{split}, full, {mode}" for mode in ("greedy", "sampled")] for split in ("test", "wordings"))
    modes = {0: [*test, *wordings], 1: ["nested, sampled", *test], 2: ["nested, sampled", *test, *wordings]}
    kept_of = {"nested, sampled": 2 * run.settings.samples}  # two whole groups; of the others a sample of each problem
    expected = [(step, mode) for step, each in modes.items() for mode in each for _ in range(kept_of.get(mode, 3))]
    assert [(r["step"], r["mode"]) for r in kept] == expected


STEP, LINE = "the optimiser's step", "the line of metrics.jsonl"


@pytest.mark.parametrize(
    "number, moment, phase",
    [(signal.SIGINT, STEP, "warmup"), (signal.SIGINT, LINE, "warmup"), (signal.SIGINT, LINE, "reinforce")]
    + [(number, STEP, "reinforce") for number in SIGNALS],
)
def test_a_signal_waits_for_the_end_of_a_step(loop, paid, number, moment, phase):
    """Weights that moved and a step that was not counted, or not written down, are no state to save; the key is
    heard right after."""
    run = loop(lr=0.1, warmup_epochs=1, warmup_batch=5)
    run.model.bfloat16()
    run.optimizer, run.phase, handler = Optimizer(run.model), phase, signal.getsignal(signal.SIGINT)
    before = [p.clone() for p in run.model.parameters()]
    place, name = (run.optimizer.adamw, "step") if moment.startswith("the opt") else (run.log, "write")
    original = getattr(place, name)

    def struck(*arguments):
        if arguments[:1] != ("evaluate",):
            signal.raise_signal(number)
        return original(*arguments)

    setattr(place, name, struck)
    with pytest.raises(KeyboardInterrupt), terminable():
        train.warm_up(run) if phase == "warmup" else train.reinforce(run)
    assert any((p != b).any() for p, b in zip(run.model.parameters(), before, strict=True))
    pairs = zip(run.model.parameters(), run.optimizer.masters, strict=True)
    assert all(torch.equal(p, m.bfloat16()) and m.grad is None for p, m in pairs)
    assert run.step == 1 and run.at_boundary
    assert [row["grad_norm"] > 0 for row in metrics(run.log.folder, phase)] == [True], "its line is written"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_signal_that_is_ignored_stays_ignored(loop, paid):
    """nohup has SIGHUP ignored, a shell's background job SIGINT."""
    handler, run = signal.signal(signal.SIGHUP, signal.SIG_IGN), loop(steps=1)
    try:
        run.optimizer.adamw.register_step_post_hook(lambda *_: signal.raise_signal(signal.SIGHUP))
        with terminable():
            train.reinforce(run)
    finally:
        signal.signal(signal.SIGHUP, handler)
    assert run.step == 1


def test_the_warm_up_s_end_is_a_boundary(loop, monkeypatch):
    """A key pressed as AdamW is made anew is heard when the phase has changed as well."""
    run, original = loop(warmup_epochs=1, warmup_batch=5), Optimizer

    def struck(model):
        signal.raise_signal(signal.SIGINT)
        return original(model)

    monkeypatch.setattr(run_module, "Optimizer", struck)
    with pytest.raises(KeyboardInterrupt):
        train.warm_up(run)
    assert (run.phase, run.step, run.optimizer.adamw.state) == ("reinforce", 0, {})


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_backward_pass_drops_the_step_that_was_begun(loop, paid, monkeypatch, number):
    """Nothing has changed yet: who presses Ctrl-C need not wait for the step."""
    run, passes = loop(micro_batch_tokens=1), []
    before, collect = [p.clone() for p in run.model.parameters()], run.optimizer.collect_gradients

    def collect_gradients():
        collect()
        passes.append(1)
        signal.raise_signal(number)

    run.optimizer.collect_gradients = collect_gradients
    with pytest.raises(KeyboardInterrupt), terminable():
        train.reinforce(run)
    assert len(passes) == 1 and run.step == 0 and run.at_boundary
    assert all(torch.equal(p, b) for p, b in zip(run.model.parameters(), before, strict=True))


def test_after_the_first_of_several_updates_a_signal_waits_for_the_step(loop, paid):
    """The weights have moved: there is no boundary to go back to."""
    run, moves = loop(updates=3, steps=5), []
    run.optimizer.adamw.register_step_post_hook(lambda *_: moves.append(signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt), terminable():
        train.reinforce(run)
    assert len(moves) == 3 and run.step == 1 and run.at_boundary


def test_between_updates_the_run_is_no_boundary(loop, paid, monkeypatch):
    """Want of memory in the second update: nothing of this step may be saved."""
    run, calls, original = loop(updates=2, steps=1), [], train.update

    def update(*arguments, **keywords):
        if calls:
            raise torch.OutOfMemoryError("no memory")
        calls.append(1)
        return original(*arguments, **keywords)

    monkeypatch.setattr(train, "update", update)
    with pytest.raises(torch.OutOfMemoryError):
        train.reinforce(run)
    assert not run.at_boundary and run.step == 0


def test_of_several_updates_the_last_one_s_ratios_are_kept(loop, paid, monkeypatch):
    """samples.jsonl says with log π how probable the model finds a completion that the line of metrics is of."""
    found, update = [], train.update
    monkeypatch.setattr(train, "update", lambda *given: found.append(update(*given)) or found[-1])
    kept, run = spy(monkeypatch, train, "groups"), loop(updates=2, steps=1, lr=0.01, eval_every=1)
    train.reinforce(run)
    (_, first), (_, last) = found
    assert torch.equal(kept[0]["log_rho"], last) and not torch.equal(first, last)


def test_weights_without_a_gradient_stay_as_they_are():
    """AdamW's default would let them decay, those of tokens that no prompt holds among them."""
    model = small_model(torch.float32)
    before = [p.clone() for p in model.parameters()]
    optimizer = Optimizer(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.lm_head.weight.grad += 1
    optimizer.collect_gradients()
    optimizer.step(lr=0.1, max_grad_norm=1.0)
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert sum(moved) == 1


@pytest.mark.parametrize("skip_ratio", [0.0, 0.25])
def test_several_updates_weigh_by_the_ratio_to_the_recorded_probabilities(loop, paid, monkeypatch, skip_ratio):
    """--updates K is K times the step of K = 1 on one rollout: with nothing skipped the first has ρ = 1, and the later
    ones have the ratio of the model that has moved to the one that sampled."""
    calls = spy(monkeypatch, train, "update")
    run, by_hand = (loop(updates=k, steps=1, skip_ratio=skip_ratio, lr=0.01, gradient="is-sequence") for k in (3, 1))
    train.reinforce(run)
    assert len(calls) == 3 and len({id(call["rollout"]) for call in calls}) == 1
    rollout, advantages, s, lr = (calls[0][name] for name in ("rollout", "advantages", "s", "lr"))
    figures = [train.update(by_hand.model, by_hand.optimizer, rollout, advantages, s, lr)[0] for _ in range(3)]
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), by_hand.model.parameters(), strict=True))
    farthest = [f["max_abs_log_ratio"] for f in figures]
    assert (farthest[0] < 1e-5) == (skip_ratio == 0) and farthest[1] > 1e-3 and len(set(farthest)) == 3
    (row,) = metrics(run.log.folder)
    assert row["max_abs_log_ratio"] == farthest[-1], "of the last, which is the farthest off"


def test_a_checkpoint_replaces_the_last_one_whole_even_under_ctrl_c(loop, monkeypatch):
    """The newest weights with their tokenizer, or the old folder; never a half-written one."""
    run = loop()
    run.save()
    run.model.lm_head.weight.data += 1
    run.step = 1
    monkeypatch.setattr(run.tokenizer, "save", lambda folder: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run.save()
    saved = Decoder.from_pretrained(run.log.folder / "checkpoint")
    assert torch.equal(saved.lm_head.weight, run.model.lm_head.weight)
    assert not (run.log.folder / "checkpoint.partial").exists()


def test_a_checkpoint_is_written_at_least_every_ten_minutes(loop, monkeypatch):
    """Steps of a large model take minutes: twenty of them would be an evening lost."""
    clock, saves, run = iter(range(0, 10_000, 250)), [], loop(steps=8, save_every=1000, eval_every=1000)
    monkeypatch.setattr(run_module.time, "monotonic", lambda: next(clock))
    run.save = lambda: saves.append(run.step) or setattr(run, "saved_at", next(clock))
    run.saved_at = next(clock)
    train.reinforce(run)
    assert saves == [0, 3, 6, 8]


def test_the_settings_reach_what_is_loaded(checkpoint, tmp_path, monkeypatch):
    """Each split in its place, the dtype, the prompt and the layers that were asked for."""
    monkeypatch.setattr(data, "load", lambda name, split, folder: [data.Problem(f"{name}, {split}", "7", "7")])
    flags = {"dtype": "bfloat16", "prompt_template": "Q: {question}", "valid_layers": "2-3", "device": "cpu"}
    run = set_up({"model": str(checkpoint), "out": str(tmp_path / "out"), "dataset": "gsm8k"} | flags)
    assert run.nested.valid == [2, 3]
    assert run.model.lm_head.weight.dtype == torch.bfloat16 and run.tokenizer.template == "Q: {question}"
    assert [p.question for p in run.train + run.test_splits["test"]] == ["gsm8k, train", "gsm8k, test"]
    run = set_up({"model": str(checkpoint), "out": str(tmp_path / "arith"), "valid_layers": "2-3"})
    assert {split: [p.question for p in problems] for split, problems in run.test_splits.items()} == {
        split: [f"arith, {split}"] for split in ("test", "wordings")
    }


def test_the_validation_split_is_tested_with_and_not_trained_on(recwarn):
    """A rate or a cap that was chosen on the test split makes its accuracy a training figure."""
    everything = data.load("arith", "train")
    trained, tests = data.load_splits("arith", eval_split="valid")
    assert (trained, tests) == (everything[:-100], {"valid": everything[-100:]}) and not recwarn.list
    trained, tests = data.load_splits("arith")
    assert trained == everything and list(tests) == ["test", "wordings"]


def test_defaults_that_depend_on_the_model_are_decided_and_written_down():
    """A rate that suits five million weights ruins a real checkpoint; what was chosen belongs into config.json."""
    embedded, svamp, other = (
        Settings(**given).decided() for given in ({}, {"dataset": "svamp"}, {"model": "M", "dataset": "svamp"})
    )
    assert embedded.lr == svamp.lr >= 10 * other.lr and svamp.warmup_lr > other.warmup_lr
    assert Settings(model=str(data.EMBEDDED)).decided().lr == embedded.lr, "named by its folder it is the same model"
    given = Settings(lr=0.0, warmup_lr=0.5, dataset="svamp", cap=3.0)
    assert given.decided() == given, "what the user says stands, 0 as well"


@pytest.mark.parametrize("long", ["train", "test"])
def test_a_prompt_too_long_is_refused_in_either_split(checkpoint, tmp_path, monkeypatch, long):
    """The test split is met after the first evaluation's first batches, or after hours."""
    monkeypatch.setattr(
        data, "load", lambda name, split, folder: [data.Problem("x" * 5000 * (split == long) + split, "7", "7")]
    )
    with pytest.raises(ValueError, match="in 1 of 3 problems: 'xxx.*5,0"):
        set_up({"model": str(checkpoint), "out": str(tmp_path / "out"), "device": "cpu"})


# ---- whole runs, on a small model with random weights


@pytest.fixture
def run(checkpoint, tmp_path):
    """Runs train.main on a small model with few steps; returns its exit status and output folder."""

    def run(*flags: str, out: str = "out") -> tuple[int, Path]:
        flags = ["--model", str(checkpoint), "--device", "cpu", *flags, "--out", str(tmp_path / out)]
        small = ["--max-new-tokens", "8", "--eval-problems", "3", "--prompts", "2", "--samples", "2", "--steps", "3"]
        return train.main([*small, *flags]), tmp_path / out

    return run


@pytest.fixture
def easy_reward(monkeypatch):
    """Rewards completions with an even number of characters, so that groups of a random model have a signal."""
    pay(monkeypatch, lambda text, p, g: len(text) % 2 == 0)


def test_a_run_leaves_metrics_samples_settings_and_a_checkpoint(run, easy_reward, checkpoint):
    """A line a step with fixed keys, accuracy before and after, and a folder that loads as it came."""
    status, out = run("--eval-every", "2", "--warmup-epochs", "0", "--gradient", "retrace")
    assert status == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(tuple(line) == METRICS for line in lines)
    order = [("evaluate", 0), *(("reinforce", n) for n in (1, 2)), ("evaluate", 2), ("reinforce", 3), ("evaluate", 3)]
    assert [(line["phase"], line["step"]) for line in lines] == order
    assert all((line["test_accuracy"] is not None) == (line["phase"] == "evaluate") for line in lines)
    rows = metrics(out)
    assert all(row["tokens_per_second"] > 0 and 0 < row["acceptance"] < 1 for row in rows)
    assert all(len(row["skipped_layers"]) == round(0.3 * 4) for row in rows)
    assert json.loads((out / "config.json").read_text())["gradient"] == "retrace"
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert set(samples[0]) == {"step", "mode", "question", "answer", "completion", "ended", "correct", "reward"}
    trained, initial = Decoder.from_pretrained(out / "checkpoint"), Decoder.from_pretrained(checkpoint)
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), initial.parameters(), strict=True))
    assert (out / "checkpoint" / "tokenizer.json").exists()


def test_a_bonus_moves_the_reward_and_leaves_accuracy_alone(run, monkeypatch):
    """A reward of one's own is for the gradient: here every completion earns at least 7, and none is correct."""
    monkeypatch.setattr(Tokenizer, "_ways_to_end", lambda self: list(range(300)))  # what does not end earns 0
    monkeypatch.setattr(reward, "reward", lambda text, correct: correct + 7.0 + len(text) % 2)
    _, out = run("--eval-every", "1")
    for row in metrics(out):
        assert row["reward"] >= 7 and row["full_reward"] >= 7 and row["stepped"] == (row["zero_variance_groups"] < 1)
    assert all(row["test_accuracy"] == row["test_accuracy_sampled"] == 0.0 for row in metrics(out, "evaluate"))


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
    first = metrics(out)[0]
    assert first["max_abs_log_ratio"] < 1e-4 and first["skipped_layers"] == []
    assert first["acceptance"] == pytest.approx(1, abs=1e-4) and first["ess"] == pytest.approx(1, abs=1e-3)


def test_a_batch_without_a_signal_takes_no_step(run, checkpoint, capsys):
    """A random model is never right: no gradient, null where a figure is undefined, weights unmoved, and a hint."""
    status, out = run()
    assert status == 0 and "--warmup-epochs" in capsys.readouterr().out
    for row in metrics(out):
        assert row["stepped"] is False and row["loss"] is None and row["grad_norm"] is None
        assert row["zero_variance_groups"] == 1 and row["acceptance"] is not None
    trained, initial = Decoder.from_pretrained(out / "checkpoint"), Decoder.from_pretrained(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), initial.parameters(), strict=True))


@pytest.mark.slow
def test_warm_up_teaches_the_rationales(run, monkeypatch):
    """Supervised learning from random weights on 64 problems: the loss falls by a lot, in the same metrics file."""
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, split, folder: load(name, split, folder)[:64])
    _, out = run("--warmup-epochs", "6", "--warmup-lr", "0.01", "--steps", "0")
    losses = [row["loss"] for row in metrics(out, "warmup")]
    assert len(losses) == 24
    assert losses[-1] < losses[0] / 2


def test_a_file_of_ones_own_is_learned_from_and_tested_with(run, tmp_path):
    """AIME or anything else, without new code: a warm-up on its solutions, steps on its questions, its test split."""
    own = tmp_path / "own.jsonl"
    lines = (
        json.dumps({"problem": f"What is {i} + 1?", "answer": i + 1, "solution": f"One more than {i}."})
        for i in range(60)
    )
    own.write_text("\n".join(lines))
    status, out = run("--dataset", str(own), "--warmup-epochs", "1", "--steps", "1")
    assert status == 0
    asked = {json.loads(line)["question"] for line in (out / "samples.jsonl").read_text().splitlines()}
    assert asked and asked <= {p.question for split in ("train", "test") for p in data.load(str(own), split)}
    assert metrics(out, "evaluate")[-1]["test_accuracy"] == 0  # measured: random weights know nothing


def test_a_file_to_test_with_takes_the_place_of_a_split(tmp_path, capsys):
    """All of it is tested with, all else is trained on; a question in both is not trained on."""
    for name, first in (("train", 0), ("test", 190)):
        rows = ({"question": f"What is {i} + 1?", "answer": i + 1} for i in range(first, first + 200))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset": str(tmp_path / "train.jsonl"), "test_file": str(tmp_path / "test.jsonl")}
    learned, tests = data.load_splits(**files)
    assert [p.question for p in learned] == [f"What is {i} + 1?" for i in range(190)]
    assert [p.answer for p in tests["test"]] == [str(i + 1) for i in range(190, 390)] and tests.keys() == {"test"}
    learned, tests = data.load_splits(dataset="arith", test_file=files["test_file"])
    assert (len(learned), tests.keys()) == (400, {"test"})
    with pytest.raises(ValueError, match="none is left to train on"):
        data.load_splits(**files | {"test_file": files["dataset"]})
    with pytest.raises(ValueError, match="expected one of the two"):
        data.load_splits(**files, eval_split="valid")


def test_a_test_split_of_a_few_problems_is_warned_of(tmp_path):
    """40 problems of one's own leave 4 to test with: 2 of 4 and 0 of 4 are hardly different."""
    rows = ({"question": f"What is {i} + 1?", "answer": i + 1} for i in range(40))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"\(test\): [1-9], which tell little"):
        data.load_splits(dataset=str(tmp_path / "own.jsonl"))


@pytest.mark.parametrize(
    "gradient", ["is-sequence", *(pytest.param(g, marks=pytest.mark.slow) for g in ("on-policy", "retrace"))]
)
def test_the_reward_rises(run, monkeypatch, gradient):
    """The whole loop learns: paid for completions that begin with a small letter, a random model soon writes them."""
    pay(monkeypatch, lambda text, p, g: text[:1].islower())
    flags = "--prompts 4 --samples 8 --max-new-tokens 2 --steps 30 --lr 0.01".split()
    flags += ["--prompt-template", "{question}"]
    _, out = run(*flags, "--gradient", gradient, "--eval-every", "1000")
    rewards = [row["reward"] for row in metrics(out)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.3


@pytest.mark.parametrize("save_every", ["1", "20"])
def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(
    run, easy_reward, monkeypatch, capsys, save_every
):
    """One line, exit status 1; what is written is what was last evaluated, not the weights that came to NaN."""
    original = Optimizer.step

    def step(self, *arguments):
        norm = original(self, *arguments)
        self.masters[-1].data.fill_(math.nan)
        return norm

    monkeypatch.setattr(Optimizer, "step", step)
    status, out = run("--save-every", save_every)
    assert status == 1
    assert all(p.isfinite().all() for p in Decoder.from_pretrained(out / "checkpoint").parameters())
    captured = capsys.readouterr()
    assert re.fullmatch("error: the .* not finite", captured.err.splitlines()[-1])
    assert captured.out.splitlines()[-1].endswith("checkpoint (after step 0)"), "to go on would end in the same"


def test_weights_that_are_not_finite_are_not_saved_at_ctrl_c(run, easy_reward, monkeypatch):
    """The step that spoiled them is a boundary, but no checkpoint to continue from."""
    original = Optimizer.step

    def step(self, *arguments):
        norm = original(self, *arguments)
        self.masters[-1].data.fill_(math.nan)
        signal.raise_signal(signal.SIGINT)
        return norm

    monkeypatch.setattr(Optimizer, "step", step)
    status, out = run("--save-every", "100")
    assert status == 130 and metrics(out)[-1]["stepped"]
    assert all(p.isfinite().all() for p in Decoder.from_pretrained(out / "checkpoint").parameters())


def test_weights_that_are_finite_and_ruined_do_not_replace_the_last_good_checkpoint(run, easy_reward, capsys):
    """A step of a trillion leaves numbers whose products overflow: the step after it finds out, too late."""
    _, out = run("--lr", "1e12", "--max-grad-norm", "0", "--save-every", "100", "--keep", "1")
    assert "not finite" in capsys.readouterr().err
    assert json.loads((out / "checkpoint" / "training" / "state.json").read_text())["step"] == 0


def test_a_terminal_that_is_gone_loses_no_boundary(run, easy_reward, monkeypatch):
    """`python train.py | head`: the line is in metrics.jsonl, and its step in the checkpoint."""
    original = run_module.tqdm.write

    def write(line):
        if line.startswith("step 1/"):
            raise BrokenPipeError(32, "Broken pipe")
        original(line)

    monkeypatch.setattr(run_module.tqdm, "write", write)
    status, out = run("--save-every", "100")
    assert status == 1
    saved = json.loads((out / "checkpoint" / "training" / "state.json").read_text())["step"]
    assert saved == metrics(out)[-1]["step"] > 0


def test_an_untruncated_weight_that_overflows_stops_the_run_and_names_its_logarithm(
    run, easy_reward, monkeypatch, capsys
):
    """Truncation is the user's choice; the last good checkpoint is kept."""
    monkeypatch.setattr(train, "log_ratio", lambda target, behaviour, mask: 99.0 * mask)
    status, out = run("--gradient", "is-sequence", "--cap", "0")
    assert status == 1 and (out / "checkpoint").is_dir()
    assert re.search(r"^error: .*its logarithm is \d+\.\d; give a cap", capsys.readouterr().err, re.M)


@pytest.mark.parametrize("wrong", [math.nan, *(pytest.param(w, marks=pytest.mark.slow) for w in (math.inf, -math.inf))])
def test_ratios_that_are_not_finite_stop_the_run(run, easy_reward, monkeypatch, capsys, wrong):
    """No weight can be made of them, and a diagnostic of NaN would be the only trace."""
    monkeypatch.setattr(train, "log_ratio", lambda target, behaviour, mask: torch.where(mask, wrong, 0.0))
    status, out = run("--gradient", "on-policy")
    assert status == 1 and Decoder.from_pretrained(out / "checkpoint")
    assert "log-ratios are not finite" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(run, easy_reward, monkeypatch, capsys, checkpoint):
    """Clipping would divide by it and spread it over all weights."""
    original = Optimizer.collect_gradients

    def collect_gradients(self):
        original(self)
        self.masters[3].grad[0] = math.inf

    monkeypatch.setattr(Optimizer, "collect_gradients", collect_gradients)
    status, out = run()
    assert status == 1 and "error: the gradient's norm is inf" in capsys.readouterr().err
    trained, initial = Decoder.from_pretrained(out / "checkpoint"), Decoder.from_pretrained(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), initial.parameters(), strict=True))


def test_completions_that_are_all_cut_off_earn_nothing(run, checkpoint):
    """An answer that may go on is no answer, right as it may look."""
    status, out = run("--max-new-tokens", "1")
    assert status == 0
    for row in metrics(out):
        assert row["unfinished"] > 0.5 and row["mean_length"] == 1
        assert row["reward"] == 0


def test_completions_that_end_at_once_are_completions(loop, paid, monkeypatch):
    """The end token alone: T = 1, and it has a ratio, a gradient and an entropy like every other token."""
    run = loop(steps=2, lr=0.01, prefill="nested")  # else the full model samples the first token, and the ratio is 1
    generate = train.generate
    monkeypatch.setattr(train, "generate", lambda *a, **k: generate(*a[:4], list(range(29)), **k))  # any token ends
    before = run.model.lm_head.weight.clone()
    train.reinforce(run)
    for row in metrics(run.log.folder):
        assert row["mean_length"] == 1 and row["unfinished"] == 0 and row["stepped"] and 0 < row["acceptance"] < 1
    assert not torch.equal(run.model.lm_head.weight, before)


def test_a_vocabulary_larger_than_the_tokenizer_s_is_sampled_whole(run, checkpoint, tmp_path):
    """Checkpoints are padded to round sizes. Ids beyond the tokenizer's decode to nothing; ratios stay those of the
    whole vocabulary."""
    model = Decoder.from_pretrained(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    padded = Decoder(parse_config(config | {"vocab_size": 2 * model.config.vocab_size}))
    padded.save_pretrained(tmp_path / "padded")
    Tokenizer(checkpoint).save(tmp_path / "padded")
    status, out = run("--model", str(tmp_path / "padded"), "--skip-ratio", "0")
    assert status == 0
    row = metrics(out)[0]
    assert row["acceptance"] == pytest.approx(1, abs=1e-4) and row["entropy"] > math.log(1.8 * model.config.vocab_size)


def test_a_model_that_is_not_finite_from_the_start_leaves_no_checkpoint(run, checkpoint, tmp_path, capsys):
    """There is no good one."""
    model = Decoder.from_pretrained(checkpoint)
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    Tokenizer(checkpoint).save(tmp_path / "broken")
    status, out = run("--model", str(tmp_path / "broken"))
    assert status == 1 and not (out / "checkpoint").exists()
    assert "logits are not finite" in capsys.readouterr().err


def test_a_read_only_folder_is_one_line(run, tmp_path, monkeypatch, capsys):
    """Said before anything is computed."""

    def mkdir(self, *arguments, **keywords):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    status, out = run()
    assert status == 1 and not out.exists()
    assert re.fullmatch(r"error: .*out: Read-only file system", capsys.readouterr().err.strip())


def interrupt_in_step_2(monkeypatch, error):
    calls, original = [], train.generate

    def generate(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(*arguments, **keywords)

    monkeypatch.setattr(train, "generate", generate)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_which_setting_to_lower(run, easy_reward, monkeypatch, capsys, error):
    """By phase: here sampling ran out, which --micro-batch-tokens would not help."""
    interrupt_in_step_2(monkeypatch, error)
    status, out = run()
    assert status == 1 and (out / "checkpoint").exists()
    assert "--samples, --prompts or --max-new-tokens" in capsys.readouterr().err


def test_memory_that_does_not_suffice_to_save_either_costs_no_advice(run, easy_reward, monkeypatch, capsys):
    """What the checkpoint needs may be more than what is left: the one before it stays."""
    saved, of_the_rollout, out_of_memory, generate = [], [], run_module.out_of_memory, train.generate

    def grows(*arguments, **keywords):
        cache = torch.zeros(1)
        of_the_rollout.append(weakref.ref(cache))
        if len(of_the_rollout) == 2:
            raise MemoryError
        return generate(*arguments, **keywords)

    def save(run):
        saved.append(of_the_rollout[1]() is None)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def from_now_on(error):
        monkeypatch.setattr(Run, "save", save)
        return out_of_memory(error)

    monkeypatch.setattr(train, "generate", grows)
    monkeypatch.setattr(run_module, "out_of_memory", from_now_on)
    with pytest.warns(UserWarning, match="no memory is left to save"):
        status, out = run()
    said = capsys.readouterr()
    assert status == 1 and "--samples, --prompts or --max-new-tokens" in said.err
    assert saved == [True], "what sampling held was let go before"
    assert f"checkpoint: {out / 'checkpoint'} (after step 0)" in said.out


@pytest.mark.parametrize("flags, stepped", [("--steps 3", [True, False, True]), ("--steps 1 --updates 2", [True])])
def test_weights_that_are_all_0_take_no_step(run, easy_reward, monkeypatch, flags, stepped):
    """--bound mask may leave nothing of a batch: AdamW would go on by what it remembers. An update before it counts."""
    steps, step, weights = [], Optimizer.step, train.gradient_weights
    monkeypatch.setattr(train, "gradient_weights", lambda *a: weights(*a) * (len(steps) != 1))

    def watched(self, *given):
        before = [p.detach().clone() for p in self.working]
        norm = step(self, *given)
        steps.append(norm > 0)
        assert all(map(torch.equal, before, self.working)) == (norm == 0)
        return norm

    monkeypatch.setattr(Optimizer, "step", watched)
    status, out = run("--prompts", "8", *flags.split())
    assert status == 0 and steps == [True, False, True][: len(steps)] and len(steps) > 1
    rows = [row for row in metrics(out) if row["phase"] == "reinforce"]
    assert [row["stepped"] for row in rows] == stepped
    assert all((row["loss"] is not None) == (row["grad_norm"] is not None) == row["stepped"] for row in rows)


def test_gradient_checkpointing_is_asked_for_by_its_flag(run, easy_reward, monkeypatch):
    """test_blocks.py holds what it does; here that it is done, and that the weights come out the same."""
    calls, weights = [], []
    original = model_module.checkpoint
    monkeypatch.setattr(model_module, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    for flags in ([], ["--gradient-checkpointing"]):
        _, out = run(*flags, "--steps", "2", out=f"out{len(weights)}")
        assert bool(calls) == bool(flags) == json.loads((out / "config.json").read_text())["gradient_checkpointing"]
        weights.append(Decoder.from_pretrained(out / "checkpoint").state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_error_of_our_own_is_not_hidden_and_loses_nothing(run, easy_reward, monkeypatch, tmp_path):
    """A traceback is right for a bug; the checkpoint is written all the same."""
    interrupt_in_step_2(monkeypatch, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run()
    assert Decoder.from_pretrained(tmp_path / "out" / "checkpoint")


# ---- nested models that are measured


@pytest.fixture
def measuring(loop):
    """A loop whose valid layers are measured and whose skipped blocks have something in their place."""

    def measuring(**settings) -> Run:
        run = loop(**{"valid_layers": "measured", "bypass": "linear"} | settings)
        run.nested.valid = None
        return run

    return measuring


def test_nested_models_are_measured_on_the_model_s_own_completions_of_train_prompts(measuring, monkeypatch):
    """By hand: the bypass of prompts and completions, and with it the acceptance with each layer skipped. The one is
    fitted on the last of them, the other is of the first."""
    monkeypatch.setattr(nested, "PROBE", 4)
    monkeypatch.setattr(nested, "FIT", 6)
    calls, run = spy(monkeypatch, nested, "generate"), measuring(prefill="nested", temperature=0.7)
    run.nested.measure(1)
    [call] = calls
    assert call["temperature"] == 0.7 and call["seed"] == 2**31, "no step of any seed draws from these streams"
    known = [run.tokenizer.encode_prompt(problem.question) for problem in run.train]
    assert sorted(call["prompts"]) == sorted(known) and call["skip"] is None and call["max_new_tokens"] == 6
    rollout = generate(**call)
    sequences = [p + row[m].tolist() for p, row, m in zip(call["prompts"], rollout.tokens, rollout.mask, strict=True)]
    bypass = fit_bypass(run.model, *pad_right(sequences[4:], "cpu"), rank=8)
    torch.testing.assert_close(vars(run.nested.bypass), vars(bypass))
    for layer, alone in enumerate(run.nested.measured.order.alone):
        kept = []
        for prompt, whole in zip(call["prompts"][:4], sequences[:4], strict=True):
            p, q = (
                (run.model(torch.tensor([whole]), skip=skip, bypass=bypass)[0, len(prompt) - 1 : -1] / 0.7).softmax(-1)
                for skip in (None, tuple(i == layer for i in range(4)))
            )
            kept += torch.minimum(p, q).sum(-1).tolist()
        assert alone == pytest.approx(sum(kept) / len(kept), abs=1e-5)


def test_batches_are_sampled_under_masks_of_the_measured_layers(measuring):
    """The set and the vectors are in force from the first batch on."""
    run = measuring(steps=6, skip_ratio=0.5)
    train.reinforce(run)
    valid = run.nested.measured.order.valid_layers(2)
    assert all(
        len(row["skipped_layers"]) == 2 and set(row["skipped_layers"]) <= set(valid) for row in metrics(run.log.folder)
    )


def test_nested_models_are_measured_every_so_many_steps_as_a_function_of_the_weights(measuring, paid, monkeypatch):
    """Before steps 1, 4 and 7; what was measured before leaves no trace, so that a resumed run finds the same."""
    found, original = [], nested.NestedModels.fit_and_order

    def fit_and_order(self, prompts):
        bypass, order = original(self, prompts)
        other = Bypass(*(torch.full_like(part, 99.0) for part in vars(bypass).values()))
        self.measured = nested.Measurement(99, other, order, "")
        again, same = original(self, prompts)
        assert order == same and all(torch.equal(vars(again)[name], part) for name, part in vars(bypass).items())
        found.append(order)
        return bypass, order

    monkeypatch.setattr(nested.NestedModels, "fit_and_order", fit_and_order)
    run = measuring(steps=7, measure_every=3, lr=0.01)
    train.reinforce(run)
    assert [row["seconds_measure"] is not None for row in metrics(run.log.folder)] == [True, False, False] * 2 + [True]
    assert len(found) == 3 and run.nested.measured.step == 7
    assert found[0] != found[1] != found[2], "the model has moved"


@pytest.mark.parametrize("settings", [{"skip_ratio": 0.0}, {"bypass": "identity", "valid_layers": "1-2"}])
def test_nothing_is_measured_where_nothing_is_to_be(loop, monkeypatch, settings):
    """A vanilla run, and the method in its plainest form."""
    calls, run = spy(monkeypatch, nested.NestedModels, "measure"), loop(**{"steps": 2, "bypass": "linear"} | settings)
    train.reinforce(run)
    assert not calls and run.nested.measured is None and run.nested.bypass is None


def test_after_the_warm_up_adamw_begins_anew(loop):
    """Its moments are of another loss; and the first reinforced step is boundary 0's."""
    run = loop(warmup_epochs=1, warmup_batch=5)
    train.warm_up(run)
    assert run.optimizer.adamw.state == {} and (run.phase, run.step, run.nested.measured) == ("reinforce", 0, None)


def trained(checkpoint, out, *flags) -> int:
    """A run of one step with two of four layers skipped."""
    small = (
        "--steps 1 --prompts 2 --samples 2 --max-new-tokens 4 --eval-problems 2 --skip-ratio 0.5 --device cpu".split()
    )
    return train.main([*small, "--model", str(checkpoint), "--out", str(out), *flags])


@pytest.mark.slow
def test_what_was_measured_is_kept_beside_the_checkpoint_and_used_for_its_weights_alone(
    checkpoint, tmp_path, monkeypatch, capsys
):
    """The second run of a model does not measure again; with another bypass, temperature or dtype, other problems or
    other weights it does."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    calls = spy(monkeypatch, nested.NestedModels, "fit_and_order")
    shutil.rmtree(folder / "nested", ignore_errors=True)
    assert trained(folder, tmp_path / "one") == trained(folder, tmp_path / "two") == 0 and len(calls) == 1
    one, two = capsys.readouterr().out.split("accepted without it")[1:]
    assert one.splitlines()[0] == two.splitlines()[0] and "Each batch skips 2 of these 4 layers: 6 masks" in one
    assert metrics(tmp_path / "one")[0]["skipped_layers"] == metrics(tmp_path / "two")[0]["skipped_layers"]
    flags, load = [], data.load
    for n, more in enumerate(("--bypass mean", "--temperature 0.9", "--dtype bfloat16", "", "--max-new-tokens 3"), 2):
        flags += more.split()  # one thing changes at a time
        if not more:
            monkeypatch.setattr(data, "load", lambda *given: load(*given)[1:])
        assert trained(folder, tmp_path / str(n), *flags) == 0 and len(calls) == n, more
    moved = Decoder.from_pretrained(folder)
    with torch.no_grad():
        moved.model["norm"].weight[-1] *= 2
    moved.save_pretrained(folder)
    assert trained(folder, tmp_path / "moved", *flags) == 0 and len(calls) == n + 1


def test_a_model_beside_which_nothing_can_be_kept_is_measured_with_a_warning(checkpoint, tmp_path, monkeypatch):
    """A checkpoint that is shared is often read-only."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    shutil.rmtree(folder / "nested", ignore_errors=True)
    (folder / "nested").touch()
    with pytest.warns(UserWarning, match="cannot be kept beside the model"):
        assert trained(folder, tmp_path / "out") == 0


@pytest.mark.parametrize("flags, problems", [("--skip-ratio 0.1", []), ("--bypass identity", [8]), ("", [20])])
def test_no_more_is_measured_than_is_used(checkpoint, tmp_path, monkeypatch, capsys, flags, problems):
    """A ratio that rounds to no layer needs no nested model, and the bypass that is none no completions to fit."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    calls = spy(monkeypatch, nested.NestedModels, "fit_and_order")
    shutil.rmtree(folder / "nested", ignore_errors=True)
    monkeypatch.setattr(nested, "FIT", 12)
    assert trained(folder, tmp_path / "out", *flags.split()) == 0
    assert [len(call["prompts"]) for call in calls] == problems and "too few" not in capsys.readouterr().out


def test_a_broken_measurement_beside_a_model_is_made_again(checkpoint, tmp_path):
    """A copy that was cut short costs a minute, not the run."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    shutil.rmtree(folder / "nested", ignore_errors=True)
    assert trained(folder, tmp_path / "one") == 0
    path = folder / "nested" / "measured.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.warns(UserWarning, match="measured again"):
        assert trained(folder, tmp_path / "two") == 0
    assert path.read_bytes() == whole


def test_rollouts_too_far_off_to_learn_from_are_said_once(loop, monkeypatch):
    """Else a run of hours shows a reward of nothing, and no reason."""
    original = train.diagnostics
    monkeypatch.setattr(train, "diagnostics", lambda *given: original(*given) | {"sequence_acceptance": 0.03})
    with pytest.warns(UserWarning, match="accept 3% of the completions sampled without 1 layers") as warned:
        train.reinforce(loop(steps=8))
    assert len(warned) == 1


def test_a_bypass_is_fitted_on_what_the_nested_model_reads(monkeypatch):
    """With prompts of three lengths: whole sequences, or their completions where the full model reads the prompts."""
    fits, model = spy(monkeypatch, nested, "fit_bypass"), small_model()
    prompts, completions = [[1], [2, 3, 4], [5, 6]], [[7, 8], [9], [10, 11, 12]]
    for full_prefill in (False, True):
        nested.fit_on_completions(model, "linear", prompts, completions, full_prefill)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            read = fits[-1]["tokens"][row, fits[-1]["mask"][row]].tolist()
            assert read == (completion if full_prefill else prompt + completion)
    assert nested.fit_on_completions(model, "identity", prompts, completions, True) is None


def test_where_the_full_model_reads_the_prompts_all_that_is_nested_knows(measuring, monkeypatch):
    """Rollouts, the bypass, and the acceptance by which layers are ordered."""
    sampled, fits, passes = (
        spy(monkeypatch, module, name)
        for module, name in ((train, "generate"), (nested, "fit_bypass"), (nested, "completion_hidden"))
    )
    updates = spy(monkeypatch, train, "update")
    run = measuring(steps=1, skip_ratio=0.5, prefill="full", lr=0.0)
    train.reinforce(run)
    [fit], [update] = fits, updates
    assert not fit["mask"][:, :7].any(), "seven tokens of a prompt each"
    assert {call["full_prefill"] for call in sampled if call["skip"]} == {True}
    caches = [call["read"].cache for call in passes]
    assert any(call["skip"] for call in passes) and not any(cache.skip for cache in caches)
    assert len(set(map(id, caches))) == 1, "the prompts are read once for all masks"
    [skip] = {call["skip"] for call in sampled if call["skip"]}
    rollout = update["rollout"]
    for full_prefill in (False, True):
        logprobs, _ = completion_logprobs(
            run.model, rollout.prompts, rollout.tokens, rollout.mask, 1.0, skip, run.nested.bypass, full_prefill
        )
        assert torch.allclose(logprobs, rollout.logprobs, rtol=0, atol=1e-5) == full_prefill
