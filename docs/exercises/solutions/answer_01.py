"""E6: w_t = min(ρ_t, C), the ratio taken as a difference of logarithms."""


def weights(log_target, log_behaviour, mask, cap):
    log_rho = (log_target.detach() - log_behaviour).where(mask, 0.0)
    return log_rho.exp().clamp(max=cap)
