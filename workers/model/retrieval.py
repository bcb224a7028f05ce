"""Recall on held-out rows, aware of duplicates.

Shapes: N rows, E width of the embeddings.
"""

from dataclasses import dataclass

from torch import Tensor

from workers.contract.version import Recall

# Scores of this many queries against all rows are held at once.
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows: prepared features, content keys of each side, and label numbers (or None)."""

    first_NI: Tensor
    second_NJ: Tensor
    first_keys_N: Tensor
    second_keys_N: Tensor
    labels_N: Tensor | None

    def __len__(self) -> int:
        return len(self.first_NI)


def recall(first_NE: Tensor, second_NE: Tensor, rows: HeldOut) -> Recall:
    """Recall at 1 and 10 of unit embeddings, both directions averaged."""
    there_1, there_10 = _one_way(first_NE, second_NE, rows.second_keys_N, rows.labels_N)
    back_1, back_10 = _one_way(second_NE, first_NE, rows.first_keys_N, rows.labels_N)
    return Recall(rows=len(rows), at_1=(there_1 + back_1) / 2, at_10=(there_10 + back_10) / 2)


def _one_way(
    queries_NE: Tensor, gallery_NE: Tensor, gallery_keys_N: Tensor, labels_N: Tensor | None
) -> tuple[float, float]:
    """A hit at 10 has the partner's own content; at 1 the same label will do as well."""
    hits_1 = hits_10 = 0
    for start in range(0, len(queries_NE), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        scores = queries_NE[rows] @ gallery_NE.mT
        found = scores.topk(min(10, len(gallery_NE)), dim=1).indices
        same = gallery_keys_N[found] == gallery_keys_N[rows, None]
        best = same[:, 0]
        if labels_N is not None:
            best = best | (labels_N[found[:, 0]] == labels_N[rows])
        hits_1 += int(best.sum())
        hits_10 += int(same.any(dim=1).sum())
    return hits_1 / len(queries_NE), hits_10 / len(queries_NE)
