"""Recall and class accuracy on held-out rows: by item, where rows that share one count as hits, and by own row.

Shapes: N rows, Q of them as queries, C classes, E width of the embeddings.
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
    rows, labels_N = held_out.rows, held_out.labels_N
    ways = ((first_NE, second_NE), (second_NE, first_NE))
    keys = (rows.second_keys_N, rows.first_keys_N)
    ranks = [_ranks(*way, held_out, keys_N) for way, keys_N in zip(ways, keys, strict=True)]
    nearest_N, item_N, own_N = (torch.cat(each) for each in zip(*ranks, strict=True))
    accuracy = None
    if labels_N is not None:
        accuracy = fmean(_class_accuracy(*way, labels_N) for way in ways)
    return Recall(
        rows=len(held_out),
        at_1=_share(nearest_N, 1),
        at_5=_share(item_N, 5),
        at_10=_share(item_N, 10),
        own_at_1=_share(own_N, 1),
        own_at_10=_share(own_N, 10),
        accuracy=accuracy,
    )


def _share(ranks_N: Tensor, most: int) -> float:
    return float((ranks_N <= most).double().mean())


def _ranks(
    queries_NE: Tensor, gallery_NE: Tensor, held_out: HeldOut, keys_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks of the best row with the query's label or item, of the best one with its item, and of its own row.

    `keys_N`: of the gallery's items. Ranks beyond the ten best are some number above ten.
    """
    rows, labels_N = held_out.rows, held_out.labels_N
    _, same_N, counts = torch.unique(keys_N, return_inverse=True, return_counts=True)
    nearest, items, owns = list[Tensor](), list[Tensor](), list[Tensor]()
    for start in range(0, len(queries_NE), _QUERIES_AT_ONCE):
        part_Q = torch.arange(start, min(start + _QUERIES_AT_ONCE, len(queries_NE)))
        found = _Best.of(queries_NE[part_Q] @ gallery_NE.mT, part_Q)
        same_item_P = found.share(rows.first_keys_N) | found.share(rows.second_keys_N)
        items.append(found.ranks(same_item_P))
        # Rows with the same item have the same embedding: they tie, however their scores are rounded.
        owns.append(found.ranks(found.share(keys_N)) + counts[same_N[part_Q]] - 1)
        if labels_N is not None:
            nearest.append(found.ranks(same_item_P | found.share(labels_N)))
    return torch.cat(nearest or items), torch.cat(items), torch.cat(owns)


@dataclass(frozen=True)
class _Best:
    """The rows of each query that score no less than its tenth best one: ten, and more where these tie with others.

    Shapes: P such pairs of a query and a row. `places_P`: of the queries among these Q.
    """

    queries_Q: Tensor
    places_P: Tensor
    rows_P: Tensor
    scores_P: Tensor

    @classmethod
    def of(cls, scores_QN: Tensor, queries_Q: Tensor) -> "_Best":
        best = scores_QN.topk(min(_BEST + 1, scores_QN.shape[1]), dim=1)
        rows_QK, tenth_Q1 = best.indices[:, :_BEST], best.values[:, :_BEST][:, -1:]
        # Where the eleventh ties with the tenth, more rows may: all scores of these queries are compared.
        is_tied_Q = (best.values[:, _BEST:] == tenth_Q1).any(dim=1)
        clear_Q, tied_Q = (each.nonzero()[:, 0] for each in (~is_tied_Q, is_tied_Q))
        places, rows = (scores_QN[tied_Q] >= tenth_Q1[tied_Q]).nonzero(as_tuple=True)
        places_P = torch.cat([clear_Q.repeat_interleave(rows_QK.shape[1]), tied_Q[places]])
        rows_P = torch.cat([rows_QK[clear_Q].flatten(), rows])
        return cls(queries_Q, places_P, rows_P, scores_QN[places_P, rows_P])

    def share(self, values_N: Tensor) -> Tensor:
        """Whether query and row have the same value (bool, P)."""
        return values_N[self.queries_Q[self.places_P]] == values_N[self.rows_P]

    def ranks(self, is_hit_P: Tensor) -> Tensor:
        """The rank of each query's best hit, from 1. Other rows that score the same come before it."""
        best_Q = self.scores_P.new_full(self.queries_Q.shape, -torch.inf)
        hits_P = self.scores_P.masked_fill(~is_hit_P, -torch.inf)
        best_Q = best_Q.scatter_reduce(0, self.places_P, hits_P, "amax")
        ahead_P = ~is_hit_P & (self.scores_P >= best_Q[self.places_P])
        ranks_Q = 1 + self.places_P[ahead_P].bincount(minlength=len(best_Q))
        return ranks_Q.masked_fill(best_Q.isneginf(), _BEST + 1)


def _class_accuracy(queries_NE: Tensor, gallery_NE: Tensor, labels_N: Tensor) -> float:
    """Share of queries that are nearest to the mean embedding of their own class."""
    classes = int(labels_N.max()) + 1
    sums_CE = gallery_NE.new_zeros(classes, gallery_NE.shape[1]).index_add(0, labels_N, gallery_NE)
    nearest_N = (queries_NE @ unit(sums_CE).mT).argmax(dim=1)
    return float((nearest_N == labels_N).double().mean())
