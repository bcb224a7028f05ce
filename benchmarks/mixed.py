"""Recall in the gallery that people search: all held-out items of all other modalities, of all datasets together.

Shapes: N rows of one side of a dataset, G items, Q queries, E width of the embeddings.
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

    Any item that a row holds together with the query's item counts. Items that score the same come before a hit.
    """
    gallery = _Gallery.from_datasets(heads, datasets)
    places = [gallery.places(torch.cat(sides)).double() for sides in gallery.rows]
    at_1, at_10 = (
        fmean(float((each <= most).double().mean()) for each in places) for most in (1, 10)
    )
    return at_1, at_10


@dataclass(frozen=True)
class _Gallery:
    """Each item once: its embedding, the number of its modality, and which items are in a row with it (G × G, sparse).

    `rows`: of each dataset, the items of both sides.
    """

    embeddings_GE: Tensor
    modalities_G: Tensor
    are_paired_GG: Tensor
    rows: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def from_datasets(
        cls, heads: ModalityHeads, datasets: Sequence[tuple[ModalityPair, HeldOut]]
    ) -> "_Gallery":
        sides = []
        for pair, held_out in datasets:
            found = held_out.rows
            sides.append((pair.first, found.first_NI, found.first_keys_N))
            sides.append((pair.second, found.second_NJ, found.second_keys_N))
        embedded, modalities, size = list[Tensor](), list[Tensor](), 0
        items: dict[int, Tensor] = {}
        for number, modality in enumerate(sorted({name for name, _, _ in sides})):
            own = [place for place, (name, _, _) in enumerate(sides) if name == modality]
            raw_NF = torch.cat([sides[place][1] for place in own])
            keys_N = torch.cat([sides[place][2] for place in own])
            distinct_G, items_N = torch.unique(keys_N, return_inverse=True)
            # Of rows with an equal key, any one: their features are equal.
            row_G = torch.empty_like(distinct_G).scatter_(0, items_N, torch.arange(len(keys_N)))
            embedded.append(heads.embed(modality, raw_NF[row_G]))
            modalities.append(torch.full((len(row_G),), number))
            lengths = [len(sides[place][2]) for place in own]
            items |= zip(own, torch.split(items_N + size, lengths), strict=True)
            size += len(row_G)
        rows = [(items[2 * place], items[2 * place + 1]) for place in range(len(datasets))]
        pairs_2N = torch.cat([torch.stack(each) for each in rows], dim=1)
        both_2N = torch.cat([pairs_2N, pairs_2N.flip(0)], dim=1)
        paired = torch.sparse_coo_tensor(
            both_2N, torch.ones(both_2N.shape[1]), (size, size), check_invariants=True
        )
        return cls(torch.cat(embedded), torch.cat(modalities), paired.coalesce(), rows)

    def places(self, items_N: Tensor) -> Tensor:
        """Place, from 1, of the best item that is in a row with the query's."""
        found = []
        for items_Q in torch.split(items_N, _QUERIES_AT_ONCE):
            scores_QG = self.embeddings_GE[items_Q] @ self.embeddings_GE.mT
            is_hit_QG = self.are_paired_GG.index_select(0, items_Q).to_dense() > 0
            is_own_QG = self.modalities_G[items_Q][:, None] == self.modalities_G
            best_Q1 = scores_QG.masked_fill(~is_hit_QG, -torch.inf).amax(dim=1, keepdim=True)
            found.append(1 + ((scores_QG >= best_Q1) & ~is_hit_QG & ~is_own_QG).sum(dim=1))
        return torch.cat(found)
