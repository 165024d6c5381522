"""The theory as tests: what docs/method.md claims under T1-T7, by enumeration, and once more with the real sampler.

The world is small enough to be counted out: a decoder of two layers over three tokens, one of which ends, and four
tokens at most. That makes 31 completions of different lengths and four skip masks. Every expectation is then a finite
sum, and a claim holds to the tenth decimal or does not hold. The model, the log-probabilities, the ratios, weights,
advantages and the loss are the project's own; what is added here is the summing up.

Rewards are any numbers: with rewards of 0 and 1 some estimators would look exact that are not.
"""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import gradient_of, small_model
from torch import Tensor

import losses
from docs.estimators import every_completion
from model import Decoder
from rollout import completion_logprobs, generate
from skip import sample_mask
from support.batches import pad_right
from support.settings import Settings

END, HORIZON, PROMPT = 0, 4, [1, 2]
MASKS = list(itertools.product((False, True), repeat=2))  # nothing, one layer, the other, both
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)  # how often a batch has each mask
EXACT, BASELINE = 1e-10, 0.3
SEQUENCE = {"kind": "is-sequence", "cap": None}
BIASED = {
    "E4": {"kind": "on-policy"},
    "E5 truncated": {"kind": "is-sequence", "cap": 1.5},
    "E6": {"kind": "is", "cap": None},
    "E6 truncated": {"kind": "is", "cap": 2.0},
    "E7": {"kind": "retrace"},
    "E8": {"kind": "retrace-token"},
    "E9": {"kind": "is-prefix", "cap": None},
    "E9 truncated": {"kind": "is-prefix", "cap": 1.5},
    "E10": {"kind": "is-geometric", "cap": None},
    "E11": {"kind": "is", "cap": 1.5, "bound": "mask"},
    "E11 of prefixes": {"kind": "is-prefix", "cap": 1.5, "bound": "mask"},
}
PREFIX = BIASED["E9"]


@dataclass
class World:
    """All N completions of up to T tokens, and what is known of each."""

    model: Decoder
    tokens: Tensor  # (N, T)
    mask: Tensor  # (N, T)
    rewards: Tensor  # (N,)
    target: Tensor  # (N, T): log π of each token, differentiable
    probability: list[Tensor]  # for each of MASKS (N,): η(y), how often the nested model samples a completion
    recorded: list[Tensor]  # for each of MASKS (N, T): log η of each token, as the sampler records it


@pytest.fixture(scope="module")
def world() -> World:
    completions = every_completion(HORIZON)
    tokens, mask = pad_right(completions, "cpu")
    sizes = {"vocab_size": 3, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "head_dim": 4}
    model = small_model(std=0.5, seed=1, num_attention_heads=2, **{"num_key_value_heads": 1} | sizes)
    rewards = torch.rand(len(completions), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def logprobs(skip):
        return completion_logprobs(model, [PROMPT] * len(completions), tokens, mask, skip=skip)[0]

    recorded = [logprobs(skip).detach() for skip in MASKS]
    probability = [each.sum(dim=1).exp() for each in recorded]
    return World(model, tokens, mask, rewards, logprobs(None), probability, recorded)


def gradient(world: World, scalar: Tensor) -> Tensor:
    parts = torch.autograd.grad(scalar, list(world.model.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def exact_gradient(world: World) -> Tensor:
    """∇ E_π[R], with nothing of the method in it: π(y) is differentiated as it stands."""
    return gradient(world, (world.target.sum(dim=1).exp() * world.rewards).sum())


def weights_of(world: World, m: int, **estimator) -> Tensor:
    log_ratio = losses.log_ratio(world.target, world.recorded[m], world.mask)
    return losses.gradient_weights(log_ratio=log_ratio, mask=world.mask, **estimator)


def update(world: World, weights: Tensor, advantages: Tensor) -> Tensor:
    """What gradient ascent adds, summed over all completions: minus the gradient of the project's loss, with Z = 1."""
    return -gradient(world, losses.policy_loss(world.target, weights, advantages, world.mask, 1.0))


def expected_update(world: World, m: int, baseline: float = BASELINE, **estimator) -> Tensor:
    """E_{y~η}[Σ_t w_t (R − b) ∇log π(y_t)] under MASKS[m]."""
    return update(world, weights_of(world, m, **estimator), world.probability[m] * (world.rewards - baseline))


def advantages_in_groups(world: World, probability: Tensor, kind: str, G: int) -> Tensor:
    """(N,): η(y) times the mean advantage of y over all groups of G that it may find itself in."""
    groups = torch.cartesian_prod(*[torch.arange(len(probability))] * G)  # (N^G, G)
    advantages = losses.group_advantages(world.rewards[groups], kind) * probability[groups].prod(dim=1, keepdim=True)
    return torch.zeros_like(probability).index_add(0, groups.flatten(), advantages.flatten() / G)


def mean_behaviour(world: World) -> Tensor:
    """η̄(y) = E_z[η_z(y)], (N,): a mixture of whole completions."""
    return SHARES @ torch.stack(world.probability)


def relative(difference: Tensor, reference: Tensor) -> float:
    return (difference.norm() / reference.norm()).item()


def test_the_world_is_what_the_theorems_speak_of(world):
    """π and every η are distributions over the 31 completions, of different lengths; every mask gives another η."""
    assert len(world.tokens) == 31 and set(world.mask.sum(dim=1).tolist()) == {1, 2, 3, 4}
    for probability in (world.target.detach().sum(dim=1).exp(), *world.probability):
        assert abs(probability.sum() - 1) < EXACT
    for one, other in itertools.combinations(world.probability, 2):
        assert (one - other).abs().sum() / 2 > 0.1
    assert torch.equal(world.recorded[0], world.target.detach())


def test_t1_weights_of_whole_sequences_are_unbiased_under_every_mask_and_every_mixture(world):
    """T1. Σ_y η(y) (π(y)/η(y)) f(y) = Σ_y π(y) f(y) whatever η is, and f = (R − b) ∇log π(y) has the exact gradient for
    its mean under π, as E_π[∇log π] = 0. What holds for each mask holds for any average over masks."""
    exact = exact_gradient(world)
    updates = torch.stack([expected_update(world, m, **SEQUENCE) for m in range(len(MASKS))])
    for each in (*updates, SHARES.to(updates) @ updates):
        assert relative(each - exact, exact) < EXACT
    constant = expected_update(world, 1, baseline=-5.0, **SEQUENCE)
    assert relative(constant - exact, exact) < EXACT


def test_t2_random_masks_give_the_update_of_their_mean_behaviour_policy(world):
    """T2. With a constant baseline the on-policy update is linear in η(y), so its mean over masks is the update under
    η̄(y) = E_z[η_z(y)]. η̄ averages whole completions: early tokens tell which mask it was, so that its conditionals are
    not the averages of the masks' conditionals."""
    ones = weights_of(world, 0, kind="on-policy")
    of_masks = sum(share * expected_update(world, m, kind="on-policy") for m, share in enumerate(SHARES))
    of_mixture = update(world, ones, mean_behaviour(world) * (world.rewards - BASELINE))
    assert abs(mean_behaviour(world).sum() - 1) < EXACT
    assert relative(of_masks - of_mixture, of_mixture) < EXACT


@pytest.mark.parametrize("G", [2, 3])
def test_t2_a_group_baseline_opens_a_gap_of_a_covariance_over_masks(world, G):
    """T2's limit. A group shares its mask, so its baseline E_z[R] moves with the mask: the update under η̄ exceeds the
    mean over masks by −Cov_z(E_z[R], E_z[Σ_t ∇log π]), with leave-one-out exactly so."""
    ones = weights_of(world, 0, kind="on-policy")

    def of(probability):
        return update(world, ones, advantages_in_groups(world, probability, "rloo", G))

    gap = of(mean_behaviour(world)) - sum(share * of(world.probability[m]) for m, share in enumerate(SHARES))
    reward = torch.stack([probability @ world.rewards for probability in world.probability])  # (4,)
    score = torch.stack([update(world, ones, probability) for probability in world.probability])  # (4, weights)
    covariance = (SHARES * reward) @ score - (SHARES @ reward) * (SHARES @ score)
    assert relative(gap - covariance, covariance) < EXACT
    assert relative(gap, exact_gradient(world)) > 0.01


@pytest.mark.parametrize("name", BIASED)
def test_t3_all_other_weights_are_biased_and_only_by_skipping(world, name):
    """T3. E4-E11 without W keep something of η: the states, the value of what follows, or the cut tail of the weights.
    With nothing skipped every ratio is 1, and all of them are the exact gradient."""
    exact = exact_gradient(world)
    assert relative(expected_update(world, 0, **BIASED[name]) - exact, exact) < EXACT
    for m in (1, 2, 3):
        assert relative(expected_update(world, m, **BIASED[name]) - exact, exact) > 0.01


@pytest.mark.parametrize("name", ["E7", "E8"])
def test_t4_weights_of_at_most_1_bound_the_second_moment_of_every_token(world, name):
    """T4. w_t² ≤ 1 inside the expectation. The claim is per token: in the sum over tokens cross terms may grow."""
    squares = token_squares(world)
    for m in range(len(MASKS)):
        bound = (world.probability[m][:, None] * squares).sum(dim=0)  # (T,): the second moments of E4
        moment = (world.probability[m][:, None] * weights_of(world, m, **BIASED[name]) ** 2 * squares).sum(dim=0)
        assert (moment <= bound * (1 + EXACT)).all()


@pytest.mark.parametrize("cap", [1.0, 1.5, 3.0])
def test_t4_truncated_weights_of_sequences_bound_the_second_moment_of_the_sum(world, cap):
    """T4. η min(W, C)² ≤ η C W = C π: at most C times the second moment of sampling from π itself."""
    squares = sequence_squares(world)
    bound = cap * (world.target.detach().sum(dim=1).exp() * squares).sum()
    for m in range(len(MASKS)):
        weights = weights_of(world, m, kind="is-sequence", cap=cap)[:, 0]  # one and the same for all tokens
        assert (world.probability[m] * weights**2 * squares).sum() <= bound * (1 + EXACT)


def token_squares(world: World) -> Tensor:
    """(N, T): ‖(R − b) ∇log π(y_t)‖², 0 outside the mask."""
    squares = torch.zeros_like(world.recorded[0])
    for row, t in world.mask.nonzero().tolist():
        squares[row, t] = gradient(world, world.target[row, t]).square().sum()
    return squares * (world.rewards - BASELINE).square()[:, None]


def sequence_squares(world: World) -> Tensor:
    """(N,): ‖(R − b) Σ_t ∇log π(y_t)‖²."""
    squares = [gradient(world, world.target[row].sum()).square().sum() for row in range(len(world.tokens))]
    return torch.stack(squares) * (world.rewards - BASELINE).square()


@pytest.mark.parametrize("G", [2, 3])
def test_t5_leave_one_out_is_exact_and_a_mean_with_oneself_shrinks_by_1_over_g(world, G):
    """T5. The others of a group are independent of y: leaving y out subtracts a constant. A mean that includes y takes
    R/G off itself, and 1 − 1/G of the exact gradient is left. To divide by the group's standard deviation is to weigh
    each group differently: that is no multiple of the exact gradient."""
    exact = exact_gradient(world)
    for m in (1, 3):
        weights = weights_of(world, m, **SEQUENCE)
        rloo, mean, grpo = (
            update(world, weights, advantages_in_groups(world, world.probability[m], kind, G))
            for kind in ("rloo", "mean", "grpo")
        )
        assert relative(rloo - exact, exact) < EXACT
        assert relative(mean - (1 - 1 / G) * exact, exact) < EXACT
        assert torch.cosine_similarity(grpo, exact, dim=0) < 1 - 1e-4


@pytest.mark.parametrize("lam", [1.0, 0.9, 0.0])
def test_t6_e7_is_the_backward_recursion_of_retrace(world, lam):
    """T6. Q_ret(t) = c_{t+1} Q_ret(t+1) + (1 − c_{t+1}) b from Q_ret(T) = R: one reward at the end, no discount, V ≡ b.
    It solves to b + (R − b) Π_{s>t} c_s; ACER's actor puts min(c̄, ρ_t) before it, with c̄ = 1."""
    for m in (1, 2, 3):
        weights = weights_of(world, m, kind="retrace", lam=lam)
        for row, rho in enumerate(ratios(world, m)):
            q, R = world.rewards[row], world.rewards[row]
            for t in reversed(range(len(rho))):
                if t + 1 < len(rho):
                    c = lam * min(1.0, rho[t + 1])
                    q = c * q + (1 - c) * BASELINE
                assert abs(weights[row, t] * (R - BASELINE) - min(1.0, rho[t]) * (q - BASELINE)) < EXACT


def test_t6_e7_with_lambda_of_1_is_v_trace(world):
    """T6. v_s = V + δ_s + c_s (v_{s+1} − V) with δ_s = ρ̄_s (r_s + V(x_{s+1}) − V(x_s)), and the actor's advantage
    ρ̄_s (r_s + v_{s+1} − V), as in Espeholt et al. (2018), for V ≡ b until the end and 0 after it."""
    for m in (1, 2, 3):
        weights = weights_of(world, m, kind="retrace")
        for row, rho in enumerate(ratios(world, m)):
            R, v_next, value_next, reward = world.rewards[row], 0.0, 0.0, world.rewards[row]
            for s in reversed(range(len(rho))):
                clipped = min(1.0, rho[s])
                actor = clipped * (reward + v_next - BASELINE)
                assert abs(weights[row, s] * (R - BASELINE) - actor) < EXACT
                v = BASELINE + clipped * (reward + value_next - BASELINE) + clipped * (v_next - value_next)
                v_next, value_next, reward = v, BASELINE, 0.0


def prefix_update(world: World, behind: Tensor, baseline: float = BASELINE) -> Tensor:
    """Σ_t E[1{t≤T} (R − b) ∇log π(y_t)] with y_{≤t} ~ π and all behind t from the conditionals e^behind, (N, T).

    Nothing of the method is in it: the probability of each way to go on is multiplied out token by token.
    """
    target = world.target.detach()
    probability = torch.zeros_like(target)
    for row, t in world.mask.nonzero().tolist():
        later = behind[row, t + 1 :][world.mask[row, t + 1 :]]
        probability[row, t] = torch.cat((target[row, : t + 1], later)).exp().prod()
    return gradient(world, (probability * (world.rewards - baseline)[:, None] * world.target).sum())


def mean_conditionals(world: World) -> Tensor:
    """(N, T): log η̄(y_t | y_<t), of the mixture of whole completions."""
    before = torch.stack([recorded.cumsum(dim=1) for recorded in world.recorded])  # log η_z(y_{≤t})
    joint = torch.logsumexp(before + SHARES.log()[:, None, None], dim=0)  # log η̄(y_{≤t})
    return torch.where(world.mask, joint - torch.nn.functional.pad(joint[:, :-1], (1, 0)), 0.0)


def test_t7_prefix_products_put_states_and_choice_under_pi_and_leave_what_follows_to_the_nested_model(world):
    """T7. η(y) Π_{s≤t} ρ_s = π(y_{≤t}) η(y_{>t} | y_{≤t}): state and choice are π's, what follows stays η's. That is
    the exact gradient where nothing is skipped, and another one where anything is."""
    exact = exact_gradient(world)
    for m in range(len(MASKS)):
        reference = prefix_update(world, world.recorded[m])
        assert relative(expected_update(world, m, **PREFIX) - reference, reference) < EXACT
        assert (relative(reference - exact, exact) < EXACT) == (m == 0)


def test_t7_any_constant_baseline_leaves_the_prefix_update_as_it_is(world):
    """T7. E_η[Π_{s≤t} ρ_s ∇log π(y_t)] = 0: given the state, π(y_t) ∇log π(y_t) sums to 0 over the choices."""
    for m in (1, 2, 3):
        reference = expected_update(world, m, **PREFIX)
        assert relative(expected_update(world, m, baseline=-5.0, **PREFIX) - reference, reference) < EXACT


def test_t7_of_a_mixture_of_masks_it_is_the_mean_over_masks_and_not_the_mixture_s_own_conditional(world):
    """T7. Each batch goes on as its own mask does. η̄'s conditional, which early tokens tell a part of the mask, is
    another way to go on."""
    of_masks = sum(share * expected_update(world, m, **PREFIX) for m, share in enumerate(SHARES))
    reference = sum(share * prefix_update(world, world.recorded[m]) for m, share in enumerate(SHARES))
    of_mixture = prefix_update(world, mean_conditionals(world))
    assert relative(of_masks - reference, reference) < EXACT
    assert relative(of_masks - of_mixture, reference) > 1e-3


@pytest.mark.parametrize("G", [2, 3])
def test_t7_a_group_mean_with_oneself_shrinks_it_by_1_over_g(world, G):
    """T7, as T5."""
    for m in (1, 3):
        weights, reference = weights_of(world, m, **PREFIX), prefix_update(world, world.recorded[m])
        rloo, mean = (
            update(world, weights, advantages_in_groups(world, world.probability[m], kind, G))
            for kind in ("rloo", "mean")
        )
        assert relative(rloo - reference, reference) < EXACT
        assert relative(mean - (1 - 1 / G) * reference, reference) < EXACT


def ratios(world: World, m: int) -> list[list[float]]:
    """ρ of each completion's tokens, straight from the two log-probabilities."""
    difference = world.target.detach() - world.recorded[m]
    return [difference[row, world.mask[row]].exp().tolist() for row in range(len(world.tokens))]


def inverted(world, monkeypatch):
    original = losses.log_ratio
    monkeypatch.setattr(losses, "log_ratio", lambda target, behaviour, mask: -original(target, behaviour, mask))
    return world


def end_token_dropped(world, monkeypatch):
    return replace(world, mask=world.mask & (world.tokens != END))


def mask_of_another_batch(world, monkeypatch):
    return replace(world, recorded=world.recorded[1:] + world.recorded[:1])


def nothing_truncated(world, monkeypatch):
    original, retrace = losses.gradient_weights, losses.WEIGHTS["retrace"]
    monkeypatch.setattr(losses, "gradient_weights", lambda *a, **k: original(*a, **k | {"cap": None}))
    monkeypatch.setitem(losses.WEIGHTS, "retrace", lambda log_rho, *a: retrace(log_rho, *a) + log_rho.clamp(min=0))
    return world


def lambda_on_t_as_well(world, monkeypatch):
    original = losses.gradient_weights
    monkeypatch.setattr(losses, "gradient_weights", lambda *a, lam, **k: lam * original(*a, lam=lam, **k))
    return world


def prefix_product(world, monkeypatch):
    original = losses.gradient_weights

    def reversed_in_time(log_ratio, mask, **estimator):
        return original(log_ratio=log_ratio.flip(1), mask=mask.flip(1), **estimator).flip(1)

    monkeypatch.setattr(losses, "gradient_weights", reversed_in_time)
    return world


def traces_not_clipped(world, monkeypatch):
    def unclipped(kind, log_ratio, mask, **estimator):
        return torch.where(mask, log_ratio.flip(1).cumsum(dim=1).flip(1), -torch.inf).exp()

    monkeypatch.setattr(losses, "gradient_weights", unclipped)
    return world


def choice_left_out(world, monkeypatch):
    prefix = losses.WEIGHTS["is-prefix"]
    monkeypatch.setitem(losses.WEIGHTS, "is-prefix", lambda log_rho, *a: prefix(log_rho, *a) - log_rho)
    return world


def product_of_all(world, monkeypatch):
    monkeypatch.setitem(losses.WEIGHTS, "is-prefix", losses.is_sequence)
    return world


def mixture_of_conditionals(world, monkeypatch):
    def by_token(world):
        conditionals = torch.einsum("z,znt->nt", SHARES, torch.stack(world.recorded).exp())
        return torch.where(world.mask, conditionals, 1.0).prod(dim=1)

    monkeypatch.setitem(globals(), "mean_behaviour", by_token)
    return world


def baseline_with_oneself(world, monkeypatch):
    original = losses.group_advantages
    monkeypatch.setattr(
        losses, "group_advantages", lambda rewards, kind: original(rewards, kind.replace("rloo", "mean"))
    )
    return world


def scaled_by_deviation(world, monkeypatch):
    original = losses.group_advantages
    monkeypatch.setattr(losses, "group_advantages", lambda rewards, kind: original(rewards, "grpo"))
    return world


T1 = test_t1_weights_of_whole_sequences_are_unbiased_under_every_mask_and_every_mixture
T2 = test_t2_random_masks_give_the_update_of_their_mean_behaviour_policy
T2_GAP = test_t2_a_group_baseline_opens_a_gap_of_a_covariance_over_masks
T3 = test_t3_all_other_weights_are_biased_and_only_by_skipping
T4_TOKEN = test_t4_weights_of_at_most_1_bound_the_second_moment_of_every_token
T4_SEQUENCE = test_t4_truncated_weights_of_sequences_bound_the_second_moment_of_the_sum
T5 = test_t5_leave_one_out_is_exact_and_a_mean_with_oneself_shrinks_by_1_over_g
T6 = test_t6_e7_is_the_backward_recursion_of_retrace
T6_V_TRACE = test_t6_e7_with_lambda_of_1_is_v_trace
T7 = test_t7_prefix_products_put_states_and_choice_under_pi_and_leave_what_follows_to_the_nested_model
T7_BASELINE = test_t7_any_constant_baseline_leaves_the_prefix_update_as_it_is
T7_MIXTURE = test_t7_of_a_mixture_of_masks_it_is_the_mean_over_masks_and_not_the_mixture_s_own_conditional
T7_GROUP = test_t7_a_group_mean_with_oneself_shrinks_it_by_1_over_g


@pytest.mark.parametrize(
    "theorem, arguments, broken",
    [
        (T1, {}, inverted),
        (T1, {}, end_token_dropped),
        (T1, {}, mask_of_another_batch),
        (T2, {}, mixture_of_conditionals),
        (T2_GAP, {"G": 2}, mixture_of_conditionals),
        (T2_GAP, {"G": 2}, baseline_with_oneself),
        (T2_GAP, {"G": 3}, scaled_by_deviation),
        (T3, {"name": "E4"}, end_token_dropped),
        (T3, {"name": "E6"}, mask_of_another_batch),
        (T3, {"name": "E8"}, mask_of_another_batch),
        (T4_TOKEN, {"name": "E7"}, traces_not_clipped),
        (T4_TOKEN, {"name": "E7"}, nothing_truncated),
        (T4_SEQUENCE, {"cap": 1.0}, nothing_truncated),
        (T4_SEQUENCE, {"cap": 1.5}, nothing_truncated),
        (T5, {"G": 2}, inverted),
        (T5, {"G": 2}, end_token_dropped),
        (T5, {"G": 3}, baseline_with_oneself),
        (T5, {"G": 2}, scaled_by_deviation),
        (T6, {"lam": 0.9}, lambda_on_t_as_well),
        (T6, {"lam": 1.0}, prefix_product),
        (T6, {"lam": 0.0}, prefix_product),
        (T6, {"lam": 1.0}, inverted),
        (T6, {"lam": 1.0}, traces_not_clipped),
        (T6_V_TRACE, {}, prefix_product),
        (T6_V_TRACE, {}, inverted),
        (T6_V_TRACE, {}, nothing_truncated),
        (T7, {}, inverted),
        (T7, {}, end_token_dropped),
        (T7, {}, mask_of_another_batch),
        (T7, {}, prefix_product),  # from the end: the product of what follows
        (T7, {}, choice_left_out),
        (T7, {}, product_of_all),
        (T7_BASELINE, {}, choice_left_out),
        (T7_MIXTURE, {}, choice_left_out),
        (T7_GROUP, {"G": 2}, baseline_with_oneself),
        (T7_GROUP, {"G": 3}, scaled_by_deviation),
    ],
)
def test_a_broken_estimator_fails_its_theorem(world, monkeypatch, theorem, arguments, broken):
    """A theorem that a wrong estimator passes would test nothing."""
    with pytest.raises(AssertionError):
        theorem(broken(world, monkeypatch), **arguments)


def deviations(world: World, settings: Settings, batches: int = 60) -> Tensor:
    """The training loss's own gradient on batches of the real sampler, each with a mask of its own, against the exact
    gradient: differences of the mean along nine directions that were fixed beforehand, in standard errors."""
    exact = -exact_gradient(world).float()  # the loss goes down where the reward goes up
    directions = torch.randn(8, len(exact), generator=torch.Generator().manual_seed(5))
    directions = torch.nn.functional.normalize(torch.cat((exact[None], directions)), dim=1)
    reward_of = {tuple(y[m].tolist()): r for y, m, r in zip(world.tokens, world.mask, world.rewards, strict=True)}
    model = Decoder(world.model.config)
    model.load_state_dict(world.model.state_dict())
    masks, along = torch.Generator().manual_seed(6), []
    for batch in range(batches):
        skip = sample_mask(2, 0.5, [0, 1], masks)
        rollout = generate(model, [PROMPT] * 64, 8, HORIZON, [END], skip=skip, seed=64 * batch)
        rewards = torch.stack(
            [reward_of[tuple(y[m].tolist())] for y, m in zip(rollout.tokens, rollout.mask, strict=True)]
        )
        advantages = losses.group_advantages(rewards.view(64, 8), settings.advantage)
        along.append(directions @ gradient_of(model, rollout, advantages.flatten(), settings))
    along = torch.stack(along) - directions @ exact  # (batches, 9)
    return along.mean(dim=0) / (along.std(dim=0) / batches**0.5)


UNBIASED = {"advantage": "rloo", "normaliser": "completions", "micro_batch_tokens": 100_000}


def test_t1_on_the_real_path_the_mean_gradient_of_sequence_weights_is_the_exact_one(world):
    """T1 once more, with nothing enumerated but the reference: sampler, recorded log-probabilities, micro-batches and
    loss as in training. Of nine independent directions none should be off by four standard errors (p < 0.001)."""
    assert deviations(world, Settings(gradient="is-sequence", cap=0.0, **UNBIASED)).abs().max() < 4


def test_t3_on_the_real_path_the_mean_on_policy_gradient_is_another_one(world):
    """T3 once more: batches of the same nested models, without the weights, do not come out at the exact gradient."""
    assert deviations(world, Settings(gradient="on-policy", **UNBIASED)).abs().max() > 4
