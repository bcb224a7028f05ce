"""Recall and class accuracy on held-out rows. Rows that share an item count as hits.

Shapes: N rows, K = 10 best of them, C classes, E width of the embeddings.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import Recall
from workers.model.heads import ModalityHeads
from workers.model.loss import unit
from workers.model.rows import PairedRows

# Scores of this many queries against all rows are held at once.
_QUERIES_AT_ONCE = 1024
_BEST = 10


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows: raw features, content keys of both sides, and class numbers or None."""

    rows: PairedRows
    labels_N: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)


def measure(heads: ModalityHeads, pair: ModalityPair, held_out: HeldOut) -> Recall:
    """Recall of these heads, averaged over both directions."""
    first_NE = heads.embed(pair.first, held_out.rows.first_NI)
    second_NE = heads.embed(pair.second, held_out.rows.second_NJ)
    return recall(first_NE, second_NE, held_out)


def recall(first_NE: Tensor, second_NE: Tensor, held_out: HeldOut) -> Recall:
    """Recall of unit embeddings, averaged over both directions."""
    ways = ((first_NE, second_NE), (second_NE, first_NE))
    hits_NK = torch.cat([_hits(queries, gallery, held_out.rows) for queries, gallery in ways])
    first_hit_N = hits_NK[:, 0]
    accuracy = None
    labels_N = held_out.labels_N
    if labels_N is not None:
        same_label_N = torch.cat([_same_label(*way, labels_N) for way in ways])
        first_hit_N = first_hit_N | same_label_N
        accuracy = fmean(_class_accuracy(*way, labels_N) for way in ways)
    return Recall(
        rows=len(held_out),
        at_1=float(first_hit_N.double().mean()),
        at_5=float(hits_NK[:, :5].any(dim=1).double().mean()),
        at_10=float(hits_NK.any(dim=1).double().mean()),
        accuracy=accuracy,
    )


def _hits(queries_NE: Tensor, gallery_NE: Tensor, rows: PairedRows) -> Tensor:
    """Which of the ten best rows share an item with the query (bool, N × K)."""
    best_NK = _best(queries_NE, gallery_NE)
    first_N, second_N = rows.first_keys_N, rows.second_keys_N
    return (first_N[best_NK] == first_N[:, None]) | (second_N[best_NK] == second_N[:, None])


def _same_label(queries_NE: Tensor, gallery_NE: Tensor, labels_N: Tensor) -> Tensor:
    """Whether the best row has the query's label (bool, N)."""
    return labels_N[_best(queries_NE, gallery_NE)[:, 0]] == labels_N


def _best(queries_NE: Tensor, gallery_NE: Tensor) -> Tensor:
    """Row numbers of the ten best (N × K), best first."""
    best = min(_BEST, len(gallery_NE))
    starts = range(0, len(queries_NE), _QUERIES_AT_ONCE)
    parts = (queries_NE[start : start + _QUERIES_AT_ONCE] for start in starts)
    return torch.cat([(part @ gallery_NE.mT).topk(best, dim=1).indices for part in parts])


def _class_accuracy(queries_NE: Tensor, gallery_NE: Tensor, labels_N: Tensor) -> float:
    """Share of queries that are nearest to the mean embedding of their own class."""
    classes = int(labels_N.max()) + 1
    sums_CE = gallery_NE.new_zeros(classes, gallery_NE.shape[1]).index_add(0, labels_N, gallery_NE)
    nearest_N = (queries_NE @ unit(sums_CE).mT).argmax(dim=1)
    return float((nearest_N == labels_N).double().mean())
