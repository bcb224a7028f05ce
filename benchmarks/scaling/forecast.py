"""Forecast for clusters: an update, a dataset, and the largest term by number of ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.scaling.model import TERMS, Shape, moment_bytes, update_terms
from benchmarks.scaling.rates import Cluster, Curve

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (512, 1024, 2048, 4096)
BATCHES = (1024, 4096, 16384, 65536)
PAIRS = tuple(10.0**power for power in range(6, 11))
BATCH, WIDTH = 32768, 1024
_FREE_SHARE = 0.5
# float16, both sides.
_BYTES = 4
_EPOCHS = 10


@dataclass(frozen=True)
class Forecast:
    """Forecast for clusters. `host_seconds`, `reading`: see Cluster. `shard_bytes_per_second`: the
    product's reader, per rank. `decomposition_seconds`: of a symmetric float64 matrix of width
    1024."""

    host_seconds: float
    reading: Curve
    shard_bytes_per_second: float
    decomposition_seconds: float

    def update(self, ranks: int, width: int, batch: int) -> dict[str, float]:
        """Return the seconds of each term."""
        cluster = Cluster(ranks, self.host_seconds, self.reading)
        shape = Shape(batch, width, width, ranks, _FREE_SHARE, row_bytes=_BYTES * width)
        return update_terms(shape, cluster)

    def once(self, ranks: int, width: int, pairs: float) -> dict[str, float]:
        """Return the seconds before the first update of a dataset of two known modalities."""
        cluster = Cluster(ranks, self.host_seconds, self.reading)
        own = pairs / ranks
        # Float32 products are summed in float64; tensor cores' TF32 would lose small ones.
        sums = 3 * own * width**2 * 2 / _FLOAT32
        shards = own * _BYTES * width / self.shard_bytes_per_second
        return {
            "reading shards": max(0.0, shards - sums),
            "summing moments": sums,
            "reducing moments": cluster.reduce(moment_bytes(width), ranks) if ranks > 1 else 0.0,
            "decompositions": 3 * self.decomposition_seconds * (width / 1024) ** 3,
        }

    def document(self) -> dict[str, Any]:
        """Return the data of plots and page."""
        return {
            "updates": [
                {"ranks": ranks, "width": width, "batch": batch, **self.update(ranks, width, batch)}
                for width in WIDTHS
                for batch in sorted({*BATCHES, BATCH})
                for ranks in RANKS
            ],
            "datasets": [
                {
                    "ranks": ranks,
                    "pairs": pairs,
                    "width": width,
                    **self._dataset(ranks, width, pairs),
                }
                for width in WIDTHS
                for pairs in PAIRS
                for ranks in RANKS
            ],
            "takes over": self._crossings(),
        }

    def _dataset(self, ranks: int, width: int, pairs: float) -> dict[str, float]:
        once = self.once(ranks, width, pairs)
        passes = _EPOCHS * pairs / BATCH * sum(self.update(ranks, width, BATCH).values())
        return {**once, "updates": passes, "seconds": sum(once.values()) + passes}

    def _crossings(self) -> list[dict[str, Any]]:
        """Return the largest term of an update by number of ranks, for each width and batch."""
        return [
            {"width": width, "batch": batch, "largest": self._largest(width, batch)}
            for width in WIDTHS
            for batch in BATCHES
        ]

    def _largest(self, width: int, batch: int) -> list[tuple[int, str]]:
        """Return (ranks, term): from this number of ranks on, the term is the largest."""
        found: list[tuple[int, str]] = []
        for ranks in range(1, RANKS[-1] + 1):
            terms = self.update(ranks, width, batch)
            term = max(TERMS, key=lambda name: terms[name])
            if not found or found[-1][1] != term:
                found.append((ranks, term))
        return found


# H100 SXM without tensor cores (67 TFLOP/s in the data sheet), 70 % of it reached.
_FLOAT32 = 0.7 * 67e12


def of_width(updates: Sequence[dict[str, Any]], width: int, batch: int) -> list[dict[str, Any]]:
    """Return the updates of this width and batch, by rising number of ranks."""
    return [one for one in updates if one["width"] == width and one["batch"] == batch]
