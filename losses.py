"""The equations E1-E11 of the method: pure functions of tensors, no model and no configuration.

For a prompt x and a completion y = y_1 … y_T (the end token included), π the target policy with all layers and η the
nested policy that sampled y:

    E1  ρ_t = π(y_t | x, y_<t) / η(y_t | x, y_<t)                             log_ratio
    E2  A_i = R_i − its group's mean, optionally scaled                       group_advantages
    E3  loss = −(1/Z) Σ_i Σ_t w_{i,t} A_i log π(y_{i,t}), w detached           policy_loss
    E4  w_t = 1                                    on-policy                  gradient_weights, by WEIGHTS
    E5  w_t = min(Π_{s≤T} ρ_s, C)                  is-sequence
    E6  w_t = min(ρ_t, C)                          is (by token)
    E7  w_t = min(1, ρ_t) Π_{s>t} λ min(1, ρ_s)    retrace, Retrace(λ)
    E8  w_t = λ min(1, ρ_t)                        retrace-token
    E9  w_t = min(Π_{s≤t} ρ_s, C)                  is-prefix
    E10 w_t = min((Π_{s≤T} ρ_s)^{1/T}, C)          is-geometric
    E11 w_t = 0 outside [1/C, C]                   instead of min(…, C), with bound="mask"

Everything is computed from log ρ in float32 or better; products are sums of logarithms, so what is bounded above stays
finite at any length. Masks are (N, T), bool or 0/1; values outside are ignored, even NaN.

To try a weight of your own, add a function to WEIGHTS: it maps log ρ to log w. --gradient and
look.py then know it; for look.py's page, add it to the script in support/page.py too.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def log_ratio(target_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log ρ, (N, T), detached; 0 outside the mask."""
    exact = torch.promote_types(target_logprobs.dtype, torch.float32)
    difference = target_logprobs.detach().to(exact) - behaviour_logprobs.to(exact)  # E1
    return torch.where(mask.bool(), difference, 0.0)


def group_advantages(rewards: Tensor, kind: str = "grpo") -> Tensor:
    """Rewards (P, G) -> advantages (P, G), each group on its own; 0 where a group's rewards are all equal.

    kind: "mean" subtracts the group's mean, "grpo" also divides by its standard deviation (of the population, plus
    1e-6; Shao et al., 2024), "rloo" subtracts the mean of the other G−1 (Kool et al., 2019).
    """
    G = rewards.shape[1]
    if G < 2:
        raise ValueError(f"a group has {G} completion; a baseline needs 2 or more")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    silent = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)  # rounding must not make a signal of equal rewards
    centred = torch.where(silent, 0.0, rewards - rewards.mean(dim=1, keepdim=True))  # E2
    if kind == "mean":
        return centred
    if kind == "grpo":
        return centred / (rewards.std(dim=1, correction=0, keepdim=True) + 1e-6)
    if kind == "rloo":
        return centred * G / (G - 1)
    raise ValueError(f"the advantage is {kind!r}; expected grpo, mean or rloo")


def on_policy(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    return torch.zeros_like(log_rho)  # E4


def is_sequence(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    return log_rho.sum(dim=1, keepdim=True).expand_as(log_rho)  # E5


def is_token(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    return log_rho  # E6


def retrace(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    log_c = torch.where(mask, log_rho.clamp(max=0.0) + log(lam), 0.0)
    from_t_on = log_c.flip(1).cumsum(dim=1).flip(1)  # Σ_{s≥t}, a running sum from the end
    after_t = F.pad(from_t_on[:, 1:], (0, 1))  # Σ_{s>t}
    return log_rho.clamp(max=0.0) + after_t  # E7


def retrace_token(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    return log_rho.clamp(max=0.0) + log(lam)  # E8


def is_prefix(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    return log_rho.cumsum(dim=1)  # E9


def is_geometric(log_rho: Tensor, mask: Tensor, lam: float) -> Tensor:
    return is_sequence(log_rho, mask, lam) / mask.sum(dim=1, keepdim=True)  # E10


# --gradient takes these names. Each function maps log ρ, 0 outside the mask, to log w, both (N, T); lam is λ. A kind
# whose name begins with "is" is an importance weight: `gradient_weights` bounds it by the cap.
WEIGHTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "on-policy": on_policy,
    "is": is_token,
    "is-sequence": is_sequence,
    "is-prefix": is_prefix,
    "is-geometric": is_geometric,
    "retrace": retrace,
    "retrace-token": retrace_token,
}


def gradient_weights(
    kind: str, log_ratio: Tensor, mask: Tensor, cap: float | None = 2.0, lam: float = 1.0, bound: str = "truncate"
) -> Tensor:
    """The weight w of each token's ∇ log π, (N, T); 0 outside the mask.

    kind: a name of WEIGHTS.  cap: C of the kinds is…, None for none.  lam: λ of E7 and E8.
    bound: what is beyond the cap is "truncate"d to C, or, outside [1/C, C], "mask"ed: its weight is 0.
    Raises ValueError for a kind or a number out of range, OverflowError for an untruncated weight beyond the dtype.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"the gradient is {kind!r}; expected one of {', '.join(WEIGHTS)}")
    if cap is not None and not cap > 0:
        raise ValueError(f"the cap is {cap}; expected a positive number, or None")
    if bound not in ("truncate", "mask") or bound == "mask" and (cap is None or cap <= 1):
        raise ValueError(f"the bound is {bound!r}, the cap {cap}; expected truncate, or mask and a cap above 1")
    if not 0 <= lam <= 1:
        raise ValueError(f"λ is {lam}; expected a number from 0 to 1")
    mask = mask.bool()
    log_rho = log_ratio.detach().to(torch.promote_types(log_ratio.dtype, torch.float32))
    log_rho = torch.where(mask, log_rho, 0.0)
    log_weight = WEIGHTS[kind](log_rho, mask, lam)
    if cap is not None and kind.startswith("is"):
        far = log_weight.abs() > math.log(cap)
        log_weight = (
            log_weight.where(~far, -math.inf) if bound == "mask" else log_weight.clamp(max=math.log(cap))
        )  # E11
    weight = torch.where(mask, log_weight.exp(), 0.0)
    if weight.isinf().any():
        row = weight.isinf().any(dim=1).nonzero()[0].item()
        raise OverflowError(f"an uncapped weight overflows, its logarithm is {log_weight[row].max():.1f}; give a cap")
    return weight


def log(x: float) -> float:
    """With log 0 = −∞, so that λ = 0 leaves E7 its last token."""
    return math.log(x) if x > 0 else -math.inf


def normaliser(mask: Tensor, kind: str | float = "tokens") -> float:
    """Z of E3, of the *whole* batch's mask (N, T): its completion tokens, its completions, or a constant as given.

    "completions" (a mean over sequences of sums) is the choice under which E5 is the exact gradient.
    """
    if kind == "tokens":
        return float(mask.sum())
    if kind == "completions":
        return float(mask.shape[0])
    try:
        constant = float(kind)
    except ValueError:
        constant = 0.0
    if not 0 < constant < math.inf:
        raise ValueError(f"the normaliser is {kind!r}; expected tokens, completions or a positive number")
    return constant


def policy_loss(logprobs: Tensor, weights: Tensor, advantages: Tensor, mask: Tensor, z: float) -> Tensor:
    """E3 of some rows of a batch: logprobs, weights, mask (n, T), advantages (n,) -> a scalar to differentiate.

    z is the batch's `normaliser`, so that the losses of micro-batches add up to the loss of the batch.
    """
    terms = weights.detach() * advantages[:, None] * logprobs
    return -torch.where(mask.bool(), terms, 0.0).sum() / z  # E3


def supervised_loss(logprobs: Tensor, mask: Tensor, z: float) -> Tensor:
    """E3 with w = A = 1: the sum of −log π over the tokens of worked solutions, by Z."""
    ones = torch.ones_like(logprobs)
    return policy_loss(logprobs, ones, ones[:, 0], mask, z)


def diagnostics(log_ratio: Tensor, mask: Tensor) -> dict[str, float]:
    """How far off-policy a batch is, by raw ratios, before any truncation; log ρ and mask (N, T), of the whole batch.

    acceptance      mean of min(1, ρ), an estimate of 1 − TV(π, η), and speculative decoding's rate of acceptance
    acceptance_p5   the 5th percentile of min(1, ρ): of the tokens, five in a hundred are less acceptable
    sequence_acceptance    mean over completions of Π_t min(1, ρ_t)
    k1, k3          means of −log ρ and of ρ − 1 − log ρ, two estimates of KL(η‖π) (Schulman, 2020)
    ratio_min, ratio_max, max_abs_log_ratio
    ess             (ΣW)² / (N ΣW²) with W = Π_t ρ_t: the share of the completions that the weights leave, 1/N to 1
    """
    mask = mask.bool().cpu()
    log_rho = torch.where(mask, log_ratio.detach().cpu().double(), 0.0)
    tokens = log_rho[mask]
    log_w = log_rho.sum(dim=1)
    log_ess = 2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0) - math.log(len(log_w))
    accepted = log_rho.clamp(max=0)
    return {
        "acceptance": accepted[mask].exp().mean().item(),
        "acceptance_p5": accepted[mask].quantile(0.05).exp().item(),
        "sequence_acceptance": accepted.sum(dim=1).exp().mean().item(),
        "k1": -tokens.mean().item(),
        "k3": (tokens.expm1() - tokens).mean().item(),
        "ratio_min": tokens.min().exp().item(),
        "ratio_max": tokens.max().exp().item(),
        "max_abs_log_ratio": tokens.abs().max().item(),
        "ess": log_ess.exp().item(),
    }
