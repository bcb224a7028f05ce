"""How many more datasets a head has room for, from its free shares so far. Plain floats, without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Below this free share a head counts as full.
FULL_BELOW = 0.1
# The forecast uses this many of the latest values: the first datasets take more than later ones.
RECENT = 4
# A smaller relative loss of free share per dataset counts as none.
_STANDS_STILL = 1e-3
# A share of 0 has no logarithm.
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Forecast:
    """Room for further datasets.

    datasets_left      datasets after which the free share is still 10 % or more; None if unknown
    taken_per_dataset  part of what is free that each dataset takes, 0 to 1; None if unknown. After k more
                       datasets, share · (1 − taken)ᵏ is free
    """

    datasets_left: int | None = None
    taken_per_dataset: float | None = None


def forecast(free_shares: Sequence[float]) -> Forecast:
    """Forecast from the free share after each dataset of one modality, oldest first.

    It assumes that each further dataset blocks the same *part of what is still free* as the latest ones did on average
    (up to four values, a straight line through their logarithms). That holds for a stream of equally novel datasets. A
    stream that repeats itself lasts longer, and a dataset of a new kind takes more than its forecast: this is an order of
    magnitude. `datasets_left` is 0 if the share is below 10 % already. Unknown with fewer than two values, since one
    dataset says nothing about the next, and if the share does not fall. Raises ValueError if a share is not in [0, 1].
    """
    for share in free_shares:
        if not 0 <= share <= 1:
            raise ValueError(f"free share is {share}, it must be from 0 to 1")
    # share ≈ share₀ · e^(−fall · n): each dataset takes the same part of what the others have left.
    fall = _fall_per_dataset(free_shares[-RECENT:])
    taken = None if fall < _STANDS_STILL else -math.expm1(-fall)
    if free_shares and free_shares[-1] < FULL_BELOW:
        return Forecast(0, taken)
    if taken is None:
        return Forecast()
    # share · e^(−fall · n) = 10 % for n = ln(share / 10 %) / fall. A forecast that ends on 10 % to rounding still fits.
    return Forecast(math.floor(math.log(free_shares[-1] / FULL_BELOW) / fall + 1e-9), taken)


def _fall_per_dataset(free_shares: Sequence[float]) -> float:
    """Least-squares slope of −log(free share) over the datasets; 0 with fewer than two."""
    if len(free_shares) < 2:
        return 0.0
    # Slope of the least-squares line through (t, log share): Σ (t − t̄) log / Σ (t − t̄)².
    middle = (len(free_shares) - 1) / 2
    logs = [math.log(max(share, _LEAST_SHARE)) for share in free_shares]
    slope = math.fsum((time - middle) * log for time, log in enumerate(logs))
    return -slope / math.fsum((time - middle) ** 2 for time in range(len(logs)))
