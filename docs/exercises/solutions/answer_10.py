"""bias² does not shrink with N and variance does, so the more completions, the larger the cap."""

import torch

BEST = {64: 2.5, 512: 9.0, 4096: 16.8}


def truncated(cap, W, terms):
    return W.clamp(max=cap)[:, None] * terms


def bias_and_moment(cap, W, eta, terms, exact):
    g = truncated(cap, W, terms)
    return (eta @ g - exact).square().sum().item(), (eta @ g.square().sum(dim=1)).item()


def mean_squared_error(cap, n, W, eta, terms, exact):
    bias, moment = bias_and_moment(cap, W, eta, terms, exact)
    variance = moment - (eta @ truncated(cap, W, terms)).square().sum().item()
    return bias + variance / n


def best_cap(n, W, eta, terms, exact):
    caps = torch.linspace(0.01, W.max().item(), 2000).tolist()
    return min(caps, key=lambda cap: mean_squared_error(cap, n, W, eta, terms, exact))
