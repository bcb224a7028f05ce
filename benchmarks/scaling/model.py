"""The time model of an update, for any machine with known rates.

An update of a global batch of B rows on N ranks, of which each has L = B / N:
- *products*: both heads forward and their weights' gradients; scores of L rows and B columns and
  the gradients
  of L embeddings: with one rank one product forward and two backward, otherwise two and two;
- *passes* over memory: the scores' softmax in both directions, the heads (sum, mask, optimizer,
  average), the rows (selection, normalisation), packing for collectives;
- *gather*: embeddings of both sides, keys, log-sums of all ranks; *reduce*: the free entries' gradients;
- *waiting*: ranks reach collectives at different times, three times per update: before the scores,
  after them, and at the end;
- *read*: additional time of streamed rows: they are read and rotated in advance, so only time
  beyond that of the update counts, if a core is free.

Letters: E width of the embeddings, I width of a head's inputs (equal on both sides).
"""

from dataclasses import dataclass
from typing import Protocol

_MEETINGS = 3
_FLOAT, _DOUBLE, _KEYS, _SUMS = 4, 8, 16, 12
_BUCKET = 1 << 20
TERMS = ("products", "passes", "gather", "reduce", "waiting", "fixed", "read")


class Rates(Protocol):
    """Seconds of each kind of work on one rank, while the other ranks do the same."""

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one number of a gathered embedding."""
        ...

    def product(self, rows: float, inner: float, columns: float) -> float:
        """One matrix product (rows × inner) (inner × columns)."""
        ...

    def scores(self, entries: float, directions: int) -> float:
        """All passes over `entries` scores, forward and backward."""
        ...

    def heads(self, entries: float) -> float:
        """All passes over both heads with `entries` entries, and over the optimizer's state."""
        ...

    def rows(self, entries: float) -> float:
        """Selection of rows, and normalisation of embeddings forward and backward; entries of both
        sides."""
        ...

    def packing(self, entries: float) -> float:
        """Copying free entries (about half) out of both gradients and back; `entries` counts
        all."""
        ...

    def gather(self, bytes_each: float, ranks: int) -> float:
        """An all-gather with `bytes_each` from each rank."""
        ...

    def reduce(self, payload: float, ranks: int) -> float:
        """An all-reduce of `payload` bytes."""
        ...

    def waiting(self, work: float) -> float:
        """Waiting for the slowest rank at a collective after `work` seconds of work."""
        ...

    def ahead(self, payload: float, rotation: float, rest: float) -> float:
        """Additional time of streamed rows: `payload` bytes read per rank and `rotation` seconds of
        products, concurrent with `rest` seconds of the update."""
        ...

    def fixed(self, rest: float) -> float:
        """Fixed time of an update, in addition to `rest` seconds that depend on its size."""
        ...


@dataclass(frozen=True)
class Shape:
    """Shape of an update. `free_share`: share of free entries of the heads. `row_bytes`: bytes
    streamed per row of a batch (both sides), 0 with rows in memory."""

    batch: int
    width: int
    inputs: int
    ranks: int
    free_share: float = 1.0
    row_bytes: int = 0

    @property
    def local(self) -> float:
        """Rows per rank."""
        return self.batch / self.ranks

    @property
    def head_entries(self) -> int:
        """Entries of both heads."""
        return 2 * self.width * self.inputs


def update_terms(shape: Shape, rates: Rates) -> dict[str, float]:
    """Return the seconds of each of TERMS; their sum is the time of an update."""
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
    """Return the bytes of one rank in each all-gather of an update."""
    embeddings = shape.local * shape.width * embedding_bytes
    return embeddings, embeddings, shape.local * _KEYS, shape.local * _SUMS


def reduced_bytes(shape: Shape) -> tuple[float, ...]:
    """Return the bytes of one rank in each all-reduce of an update. DDP closes a bucket at one MiB,
    so larger heads are sent one by one."""
    both = shape.head_entries * shape.free_share * _FLOAT
    is_apart = shape.head_entries // 2 * _FLOAT >= _BUCKET
    return (both / 2, both / 2) if is_apart else (both,)


def moment_bytes(inputs: int) -> float:
    """Return the bytes of one rank in the all-reduce of a dataset's moments (float64, packed)."""
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
