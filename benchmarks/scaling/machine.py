"""Rates of this machine: constants of the same run, with ranks that share cores.

With more ranks than cores, computation takes ranks / cores times as long as with one rank per core.
Collectives are measured with the same number of ranks, so their time includes waiting for a core.
gloo needs a core as well, so no collective overlaps with computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.scaling.constants import Points
from benchmarks.scaling.curves import Curve


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
