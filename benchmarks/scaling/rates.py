"""`model.Rates` of this machine, measured, and of accelerators, assumed.

This machine: constants of the same run, with ranks that share cores. With more ranks than cores, computation takes
ranks / cores times as long as with one rank per core. Collectives are measured with the same number of ranks, so
their time includes waiting for a core. gloo needs a core as well, so no collective overlaps with computation.

Accelerators of the forecast: each number with its public source. NVIDIA H100 SXM, eight to a node, as in a DGX H100.
Rates are what sources call peak, times a share that large products and collectives are known to reach; the
interpreter's time per update and the time to read rows are measured on this machine in the same run.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.scaling.constants import Points

_TERA, _GIGA = 1e12, 1e9
SOURCES: Mapping[str, str] = {
    "products": "989 TFLOP/s in bfloat16, dense (NVIDIA, H100 data sheet, SXM), 60 % of it reached; "
    "float32 is not used for products of an update",
    "memory": "3.35 TB/s (the same data sheet), 80 % of it reached",
    "in a node": "NVLink 4: 900 GB/s both ways, so 450 GB/s one way (the same data sheet), 80 % of it "
    "reached as bus bandwidth of a ring",
    "between nodes": "eight NDR InfiniBand adapters of 400 Gb/s, one a GPU (NVIDIA, DGX H100 user "
    "guide): rings over all adapters move 400 GB/s for each node, 80 % of it reached",
    "latency": "20 µs for a collective in a node and 10 µs more for each doubling of nodes: the order "
    "of magnitude that NCCL's own tests report for small messages",
    "float32 scores": "scores and sums are float32; 24 floats move for each in each direction, counted in "
    "workers/model/loss.py; 22 for an entry of a head, counted in workers/model/pair.py "
    "and for fused AdamW",
}


@dataclass(frozen=True)
class Curve:
    """Points (size, seconds) in rising order, with linear interpolation and extrapolation on
    logarithmic axes."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def through(cls, found: Mapping[float, float]) -> "Curve":
        """Return a curve through all points. Raises ValueError for fewer than two."""
        if len(found) < 2:
            raise ValueError(f"a curve needs at least 2 points, these are {len(found)}")
        return cls(tuple(sorted(found.items())))

    def at(self, size: float) -> float:
        """Return the seconds for this size; 0 for size 0."""
        if size <= 0:
            return 0.0
        sizes = [point[0] for point in self.points]
        above = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
        (left, low), (right, high) = self.points[above - 1 : above + 1]
        share = math.log(size / left) / math.log(right / left)
        return low * math.pow(high / low, share)


@dataclass(frozen=True)
class Machine:
    """`model.Rates` of `ranks` processes of one thread on `cores` cores.

    `own`: constants measured with min(ranks, cores) processes at once; `shared`: collectives.
    """

    ranks: int
    cores: int
    own: Mapping[str, Curve]
    shared: Mapping[str, Curve]
    fixed_seconds: float
    embedding_bytes: int = 4

    @property
    def turns(self) -> float:
        """Return the slowdown of a rank by others on the same core."""
        return max(1.0, self.ranks / self.cores)

    def fixed(self, rest: float) -> float:
        """See Rates. Interpreter time is added, because the same thread computes."""
        return self.fixed_seconds * self.turns

    def product(self, rows: float, inner: float, columns: float) -> float:
        """See Rates. The smallest dimension selects the curve."""
        least = min(rows, inner, columns)
        curve = self.own["inner product" if least == inner < columns else "rows product"]
        # The other two dimensions of the curve.
        of_curve = least * _OTHERS
        return curve.at(least) * (rows * inner * columns / of_curve) * self.turns

    def scores(self, entries: float, directions: int) -> float:
        """See Rates."""
        name = "one direction" if directions == 1 else "two directions"
        return self.own[f"scores, {name}"].at(entries) * self.turns

    def heads(self, entries: float) -> float:
        """See Rates."""
        return self.own["heads"].at(entries) * self.turns

    def rows(self, entries: float) -> float:
        """See Rates."""
        return self.own["rows"].at(entries) * self.turns

    def packing(self, entries: float) -> float:
        """See Rates."""
        return self.own["packing"].at(entries) * self.turns

    def gather(self, bytes_each: float, ranks: int) -> float:
        """See Rates."""
        return self.shared["gather"].at(bytes_each)

    def reduce(self, payload: float, ranks: int) -> float:
        """See Rates."""
        return self.shared["reduce"].at(payload)

    def waiting(self, work: float) -> float:
        """See Rates. Constant below the smallest measured work."""
        return self.shared["waiting"].at(max(work, self.shared["waiting"].points[0][0]))

    def ahead(self, payload: float, rotation: float, rest: float) -> float:
        """See Rates. A thread reads and rotates rows in advance, which is hidden if a core is
        free."""
        read = self.own["read"].at(payload * self.ranks) / self.ranks
        seconds = read * self.turns + rotation
        return max(0.0, seconds - rest) if self.ranks < self.cores else seconds


_OTHERS = 1024**2


def curves(points: Mapping[str, Points]) -> dict[str, Curve]:
    """Return the curve of each constant."""
    return {name: Curve.through(found) for name, found in points.items()}


@dataclass(frozen=True)
class Cluster:
    """`model.Rates` of `ranks` H100s. `host_seconds`: interpreter time of one update. `reading`:
    seconds by bytes, of one process."""

    ranks: int
    host_seconds: float
    reading: Curve
    embedding_bytes: int = 2
    flops: float = 0.6 * 989 * _TERA
    memory: float = 0.8 * 3350 * _GIGA
    in_node: float = 0.8 * 450 * _GIGA
    between: float = 0.8 * 400 * _GIGA
    node: int = 8

    def fixed(self, rest: float) -> float:
        """Kernels are launched asynchronously, so only interpreter time beyond theirs counts."""
        return max(0.0, self.host_seconds - rest)

    def product(self, rows: float, inner: float, columns: float) -> float:
        """See Rates. The slower of arithmetic and memory decides."""
        moved = 2 * (rows * inner + inner * columns + rows * columns)
        return max(2 * rows * inner * columns / self.flops, moved / self.memory)

    def scores(self, entries: float, directions: int) -> float:
        """See Rates."""
        return self._passes(entries * directions, 24)

    def heads(self, entries: float) -> float:
        """See Rates."""
        return self._passes(entries, 22)

    def rows(self, entries: float) -> float:
        """See Rates."""
        return self._passes(2 * entries, 8)

    def packing(self, entries: float) -> float:
        """See Rates. All entries into a bucket, then half of them out and back, with 64-bit
        indices."""
        return self._passes(entries, 6)

    def gather(self, bytes_each: float, ranks: int) -> float:
        """See Rates. In a ring the data of all other ranks passes through each rank."""
        return self._latency + (ranks - 1) * bytes_each / self._wire

    def reduce(self, payload: float, ranks: int) -> float:
        """See Rates. A ring: reduce-scatter and all-gather."""
        return self._latency + 2 * (ranks - 1) / ranks * payload / self._wire

    def waiting(self, work: float) -> float:
        """Return 0: all cards are assumed to be equally fast."""
        return 0.0

    def ahead(self, payload: float, rotation: float, rest: float) -> float:
        """See Rates. Hosts read while cards compute; the rotation runs on the card."""
        read = self.reading.at(payload * self.ranks) / self.ranks
        return rotation + max(0.0, read - rest - rotation)

    def _passes(self, entries: float, floats: int) -> float:
        return 4 * floats * entries / self.memory

    @property
    def _wire(self) -> float:
        return self.in_node if self.ranks <= self.node else self.between

    @property
    def _latency(self) -> float:
        nodes = max(1.0, self.ranks / self.node)
        return 20e-6 + 10e-6 * math.log2(nodes)
