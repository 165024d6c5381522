"""The script that compares estimators: what it can know beforehand, it must find."""

import pytest
import torch

from docs import estimators


def test_where_all_is_counted_out_the_exact_estimator_has_no_bias():
    """E5 without a cap (T1); every other weight has some, and the noise of a bounded weight is the smaller one."""
    rows = {row["name"]: row for row in estimators.counted_out(n_models=1, n_masks=1, horizon=3) if row["at"] == 3}
    exact = rows.pop("E5 IS, sequence")
    assert exact["bias"] < 1e-9 and exact["cosine"] == pytest.approx(1)
    assert all(row["bias"] > 1e-3 for row in rows.values())
    assert rows["E7 Retrace, λ = 1"]["noise"] < rows["E4 on-policy"]["noise"]
    assert all(row["aim"] <= row["cosine"] for row in rows.values() if row["cosine"] > 0)


def test_the_noise_of_few_batches_is_not_taken_for_bias():
    """Estimates g* + n, 2 g* + n and an orthogonal part, from noisy samples of known size: bias 0, 1, cosine, noise."""
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(20_000)
    true[:100] = 1.0  # ‖g*‖² = 100
    across = torch.zeros(20_000)
    across[100:200] = 1.0

    def batches(mean, n=60, spread=0.1):  # noise 20,000 · 0.01 / 100 = 2
        return mean + spread * torch.randn(n, len(mean), generator=generator)

    def blocks(g):
        return torch.stack([g[i::6].mean(dim=0) for i in range(6)])

    reference = blocks(batches(true))
    for mean, bias, cosine in ((true, 0, 1), (2 * true, 1, 1), (true + across, 1, 0.5**0.5)):
        g = batches(mean)
        both = torch.cat((blocks(g), reference))
        figures = estimators.compare(both @ both.T, g.square().sum(dim=1))
        assert figures["bias"] == pytest.approx(bias, abs=0.15) and figures["cosine"] == pytest.approx(cosine, abs=0.02)
        assert figures["noise"] == pytest.approx(2, rel=0.05)
        size = (mean.norm() / true.norm()).item() * cosine
        assert figures["aim"] == pytest.approx(size / ((mean.norm() / true.norm()).item() ** 2 + 2) ** 0.5, abs=0.03)
