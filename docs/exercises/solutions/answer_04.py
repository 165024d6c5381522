"""States and choice as π's, what follows half-way: Π_{s≤t} ρ_s · (Π_{s>t} ρ_s)^½, between is-prefix and is-sequence."""


def log_weight(log_rho, mask, lam):
    upto = log_rho.cumsum(dim=1)
    after = log_rho.sum(dim=1, keepdim=True) - upto
    return upto + after / 2
