"""Recall in the gallery that people search: all held-out rows of all other modalities, of all datasets together.

Shapes: G entries of the gallery, one for each side of each row; N rows of a dataset, Q queries, E width of the embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads
from workers.train.evaluation import HeldOut

_QUERIES_AT_ONCE = 512


@torch.inference_mode()
def mixed_recall(
    heads: ModalityHeads, datasets: Sequence[tuple[ModalityPair, HeldOut]]
) -> tuple[float, float]:
    """R@1 and R@10 of all held-out rows in both directions, with equal weight for all datasets.

    An entry counts if any row pairs its item with the query's. Entries that score the same come before a hit.
    """
    gallery = _Gallery.from_datasets(heads, datasets)
    places, start = list[Tensor](), 0
    for _, held_out in datasets:
        places.append(gallery.places(slice(start, start + 2 * len(held_out))))
        start += 2 * len(held_out)
    at_1, at_10 = (
        fmean(float((each <= most).double().mean()) for each in places) for most in (1, 10)
    )
    return at_1, at_10


@dataclass(frozen=True)
class _Gallery:
    """Entries of one dataset after the other, the first sides of its rows before the second ones.

    `items_G`: which item an entry is, a number over all modalities. `are_paired`: which items are in a row (sparse).
    """

    embeddings_GE: Tensor
    modalities_G: Tensor
    items_G: Tensor
    are_paired: Tensor

    @classmethod
    def from_datasets(
        cls, heads: ModalityHeads, datasets: Sequence[tuple[ModalityPair, HeldOut]]
    ) -> "_Gallery":
        names = sorted({name for pair, _ in datasets for name in pair.modalities})
        embedded, modalities, keys, partners = [], [], list[Tensor](), list[Tensor]()
        entries = 0
        for pair, held_out in datasets:
            rows = held_out.rows
            for name, raw_NF, keys_N in (
                (pair.first, rows.first_NI, rows.first_keys_N),
                (pair.second, rows.second_NJ, rows.second_keys_N),
            ):
                embedded.append(heads.embed(name, raw_NF))
                modalities.append(torch.full_like(keys_N, names.index(name)))
                keys.append(keys_N)
            firsts_N = torch.arange(entries, entries + len(rows))
            partners += [firsts_N + len(rows), firsts_N]
            entries += 2 * len(rows)
        modalities_G = torch.cat(modalities)
        # Keys are of the content, so an item of two modalities may have the same.
        identities_G2 = torch.stack([modalities_G, torch.cat(keys)], dim=1)
        distinct, items_G = torch.unique(identities_G2, dim=0, return_inverse=True)
        pairs_2G = torch.stack([items_G, items_G[torch.cat(partners)]])
        ones_G, size = torch.ones(entries), (len(distinct), len(distinct))
        paired = torch.sparse_coo_tensor(pairs_2G, ones_G, size, check_invariants=True)
        return cls(torch.cat(embedded), modalities_G, items_G, paired.coalesce())

    def places(self, queries: slice) -> Tensor:
        """Place, from 1, of the best entry that is paired with each of these."""
        found = []
        for numbers_Q in torch.split(torch.arange(queries.start, queries.stop), _QUERIES_AT_ONCE):
            scores_QG = self.embeddings_GE[numbers_Q] @ self.embeddings_GE.mT
            paired = self.are_paired.index_select(0, self.items_G[numbers_Q]).to_dense()
            is_hit_QG = paired[:, self.items_G] > 0
            is_own_QG = self.modalities_G[numbers_Q][:, None] == self.modalities_G
            best_Q1 = scores_QG.masked_fill(~is_hit_QG, -torch.inf).amax(dim=1, keepdim=True)
            found.append(1 + ((scores_QG >= best_Q1) & ~is_hit_QG & ~is_own_QG).sum(dim=1))
        return torch.cat(found)
