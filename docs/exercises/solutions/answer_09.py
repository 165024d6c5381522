"""A generator made anew from (seed, step), used once, and thrown away: there is no state to save."""

import numpy as np


def temperature(seed, step):
    return float(np.random.default_rng([seed, step]).uniform(0.7, 1.3))
