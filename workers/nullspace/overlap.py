"""How many of the best results of a query two versions have in common, expected from the correlation of their scores.

Shapes: P points of an integral.

Over the rows of a gallery, the scores of a query under two versions are taken as normal with correlation r
(`certificate.PairScores.correlations`). A row is among the best k of n if its score is above the quantile
q = Φ⁻¹(1 − k / n). Of those above it in one version, the share that is above it in the other as well is

    n / k ∫_q^∞ φ(z) Φ((r z − q) / √(1 − r²)) dz                                              (18)
"""

import math

import torch

BEST = 10
_POINTS = 2049
# Beyond this many standard deviations above q there is nothing left.
_END = 8.0


def expected_overlap(correlation: float, rows: int, best: int = BEST) -> float:
    """(18): the share of the `best` of `rows` rows that both versions return; 1 if there are no more rows."""
    if rows <= best or correlation >= 1:
        return 1.0
    share = best / rows
    quantile = float(torch.special.ndtri(torch.tensor(1 - share, dtype=torch.float64)))
    z_P = torch.linspace(quantile, quantile + _END, _POINTS, dtype=torch.float64)
    density_P = torch.exp(-z_P.square() / 2) / math.sqrt(2 * math.pi)
    rest = math.sqrt(max(1 - correlation**2, 1e-300))
    also_P = torch.special.ndtr((correlation * z_P - quantile) / rest)
    found = min(float(torch.trapezoid(density_P * also_P, z_P)) / share, 1.0)
    assert found >= 0
    return found
