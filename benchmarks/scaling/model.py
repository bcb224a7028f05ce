"""The model: where the time of an update goes, on any machine whose rates are known.

An update of a global batch of B rows on N ranks, of which each has L = B / N:
- *products*: both heads forward and their weights' gradients; scores of L rows against B columns and
  the gradients of L embeddings: alone one product forward and two backward, else two and two;
- *passes* over memory: the scores' softmax in both directions, the heads (sum, mask, optimizer,
  average), the rows (selecting, unit length), packing of what travels;
- *gather*: embeddings of both sides, keys, log-sums of all ranks; *reduce*: the free entries' gradients;
- *waiting*: ranks come to a collective one after another, three times in an update: before the scores,
  after them, and in the end;
- *read*: what rows that are streamed add: they are read and turned into the heads' coordinates
  ahead, so they cost what they take longer than an update, where they find a core of their own.

Letters: E width of the embeddings, I of what a head reads (alike on both sides).
"""

from dataclasses import dataclass
from typing import Protocol

_MEETINGS = 3
_FLOAT, _DOUBLE, _KEYS, _SUMS = 4, 8, 16, 12
_BUCKET = 1 << 20
TERMS = ("products", "passes", "gather", "reduce", "waiting", "fixed", "read")


class Rates(Protocol):
    """Seconds of each kind of work on one rank, while the others do the same."""

    @property
    def embedding_bytes(self) -> int:
        """Of a number of an embedding that travels."""
        ...

    def product(self, rows: float, inner: float, columns: float) -> float:
        """One matrix product (rows × inner) (inner × columns)."""
        ...

    def scores(self, entries: float, directions: int) -> float:
        """All passes over so many scores, forward and backward."""
        ...

    def heads(self, entries: float) -> float:
        """All passes over both heads, whose entries these are, and over the optimizer's state."""
        ...

    def rows(self, entries: float) -> float:
        """Selecting rows, bringing embeddings to unit length and back; entries of both sides."""
        ...

    def packing(self, entries: float) -> float:
        """Taking free entries (about half) out of both gradients and putting them back; all entries."""
        ...

    def gather(self, bytes_each: float, ranks: int) -> float:
        """An all-gather to which each rank gives so much."""
        ...

    def reduce(self, payload: float, ranks: int) -> float:
        """An all-reduce of so much."""
        ...

    def waiting(self, work: float) -> float:
        """For the last rank, at a collective that all come to after so many seconds of work."""
        ...

    def ahead(self, payload: float, rotation: float, rest: float) -> float:
        """What rows that are streamed add to an update: so many bytes for one rank to read, their
        rotation by so many seconds of products, beside `rest` seconds of update."""
        ...

    def fixed(self, rest: float) -> float:
        """What an update costs however small it is, beside `rest` seconds that depend on its size."""
        ...


@dataclass(frozen=True)
class Shape:
    """Of an update. `free_share` of the heads' entries may move; `row_bytes` are streamed for each
    row of a batch (both sides), 0 where all rows are in memory."""

    batch: int
    width: int
    inputs: int
    ranks: int
    free_share: float = 1.0
    row_bytes: int = 0

    @property
    def local(self) -> float:
        """Rows of one rank."""
        return self.batch / self.ranks

    @property
    def head_entries(self) -> int:
        """Of both heads."""
        return 2 * self.width * self.inputs


def update_terms(shape: Shape, rates: Rates) -> dict[str, float]:
    """Seconds of each of TERMS; they add up to the time of an update."""
    found = {
        "products": _products(shape, rates),
        "passes": _passes(shape, rates),
        "gather": _gather(shape, rates),
        "reduce": _reduce(shape, rates),
    }
    own = found["products"] + found["passes"]
    found["waiting"] = _MEETINGS * rates.waiting(own / _MEETINGS) if shape.ranks > 1 else 0.0
    found["fixed"] = rates.fixed(sum(found.values()))
    rotation = 2 * rates.product(shape.local, shape.inputs, shape.inputs)
    payload, rest = shape.local * shape.row_bytes, sum(found.values())
    return {**found, "read": rates.ahead(payload, rotation, rest) if payload else 0.0}


def gathered_bytes(shape: Shape, embedding_bytes: int = _FLOAT) -> tuple[float, ...]:
    """What one rank gives to each all-gather of an update."""
    embeddings = shape.local * shape.width * embedding_bytes
    return embeddings, embeddings, shape.local * _KEYS, shape.local * _SUMS


def reduced_bytes(shape: Shape) -> tuple[float, ...]:
    """What one rank gives to each all-reduce of an update: DDP closes a bucket once it has a MiB, so
    heads that are no smaller travel one by one."""
    both = shape.head_entries * shape.free_share * _FLOAT
    is_apart = shape.head_entries // 2 * _FLOAT >= _BUCKET
    return (both / 2, both / 2) if is_apart else (both,)


def moment_bytes(inputs: int) -> float:
    """What one rank gives to the one all-reduce of a dataset's moments (float64, packed)."""
    return _DOUBLE * (inputs * (inputs + 1) + inputs**2 + 1)


def _products(shape: Shape, rates: Rates) -> float:
    local, batch, width, inputs = shape.local, shape.batch, shape.width, shape.inputs
    heads = rates.product(local, inputs, width) + rates.product(width, local, inputs)
    scores, pulls = rates.product(local, width, batch), rates.product(local, batch, width)
    directions = 1 if shape.ranks == 1 else 2
    return 2 * heads + directions * scores + 2 * pulls


def _passes(shape: Shape, rates: Rates) -> float:
    directions = 1 if shape.ranks == 1 else 2
    return (
        rates.scores(shape.local * shape.batch, directions)
        + rates.heads(shape.head_entries)
        + rates.rows(shape.local * (shape.inputs + shape.width))
        + (rates.packing(shape.head_entries) if shape.ranks > 1 else 0.0)
    )


def _gather(shape: Shape, rates: Rates) -> float:
    if shape.ranks == 1:
        return 0.0
    given = gathered_bytes(shape, rates.embedding_bytes)
    return sum(rates.gather(one, shape.ranks) for one in given)


def _reduce(shape: Shape, rates: Rates) -> float:
    if shape.ranks == 1:
        return 0.0
    return sum(rates.reduce(one, shape.ranks) for one in reduced_bytes(shape))
