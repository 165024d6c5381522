"""ESS = E[W]²/E[W²] = exp(−Tσ²) for log W normal with variance Tσ²; and E[min(1, ρ)] = 2Φ(−σ/2)."""

import math
from statistics import NormalDist

SMALL = 0.01  # such tokens make the variance of log ρ; their completions weigh nothing in Σ W and in Σ W²


def ess_from_variance(variance, length):
    return math.exp(-length * variance)


def ess_from_acceptance(acceptance, length):
    sigma = -2 * NormalDist().inv_cdf(acceptance / 2)
    return ess_from_variance(sigma**2, length)
