"""Least squares with a constant: centre both sides, solve the normal equations with a small ridge."""

import torch

MEAN_HELPS = 0
MEAN_HURTS = 11


def states(model, tokens, mask):
    found = []

    def keep(block, given, output):
        found.append((block.input_layernorm(given[0])[mask], (output - given[0])[mask]))

    hooks = [block.register_forward_hook(keep) for block in model.model.layers]
    model.hidden(tokens)
    for hook in hooks:
        hook.remove()
    return found


def fit_mean(x, update):
    return update.mean(dim=0)


def fit_linear(x, update):
    centred, target = x - x.mean(dim=0), update - update.mean(dim=0)
    gram = centred.T @ centred
    gram.diagonal().add_(0.001 * gram.diagonal().mean())
    matrix = torch.linalg.solve(gram, centred.T @ target)
    return matrix, update.mean(dim=0) - x.mean(dim=0) @ matrix
