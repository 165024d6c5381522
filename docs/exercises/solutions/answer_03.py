"""R − (S − R)/(G − 1) = (G R − S)/(G − 1) = G/(G − 1) (R − S/G), with S the sum of the group."""


def leave_one_out(rewards):
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def factor(G):
    return G / (G - 1)
