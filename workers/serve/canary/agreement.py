"""Agreement of two versions: do they rank the same items alike, on recent rows and without labels?

Recent rows are in memory only.

Shapes: B rows of a request, Q queries, N rows that are kept and ranked, F width of the raw feature, E width of
the embeddings.
"""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.policy import PairAgreement
from workers.model.heads import unit_rows
from workers.nullspace.compatibility import kept_share
from workers.serve.lru import LRU
from workers.serve.versions.loading import Float32Array, ServedVersion

_KEPT_ROWS = 256
# Few of each request: 4096 rows of one upload would displace all others.
_KEPT_OF_A_REQUEST = 4
# Modalities of models; 256 rows of width 1024 are 1 MiB for each.
_MOST_PLACES = 64

# Any two versions agree on the ten best of ten; of 32 by chance on three of them.
_LEAST_STORED = 32
# Rows to rank are embedded again once this share of them is new.
_STALE_SHARE = 0.25


class RecentRows:
    """The last distinct rows of one modality. Written by the event loop, read by the background thread.

    Equal rows are kept once: a probe that sends the same feature every second would otherwise displace all
    others, and any two versions agree on the order of equal rows.
    """

    def __init__(self, width: int, most: int = _KEPT_ROWS) -> None:
        self.width = width
        self.added = 0
        self._rows: LRU[int, Float32Array] = LRU(most)
        self._lock = threading.Lock()

    def keep(self, rows_BF: Float32Array) -> None:
        """Keep some of these rows, spread over the request."""
        step = -(-len(rows_BF) // _KEPT_OF_A_REQUEST)
        for row_F in rows_BF[::step]:
            # A copy, because a view would keep the whole request in memory.
            self._keep_one(np.array(row_F, order="C"))

    def rows(self) -> Float32Array:
        """Return all kept rows (N × F), the oldest first."""
        with self._lock:
            kept = list(self._rows.values())
        return np.array(kept, np.float32).reshape(len(kept), self.width)

    def __len__(self) -> int:
        return len(self._rows)

    def _keep_one(self, row_F: Float32Array) -> None:
        key = xxhash.xxh3_64_intdigest(row_F.data)
        if key in self._rows:
            return
        with self._lock:
            self._rows[key] = row_F
        self.added += 1


class RecentFeatures:
    """`RecentRows` by model and modality, of those that were used last."""

    def __init__(self, most_places: int = _MOST_PLACES) -> None:
        self._places: LRU[tuple[str, str], RecentRows] = LRU(most_places)

    def keep(self, model: str, modality: str, rows_BF: Float32Array) -> None:
        """Keep some rows of a request."""
        place, width = (model, modality), rows_BF.shape[1]
        known = self._places.use(place)
        if known is None or known.width != width:  # Of a deleted model that had the same name.
            known = self._places[place] = RecentRows(width)
        known.keep(rows_BF)

    def of(self, model: str, modality: str) -> RecentRows | None:
        """Return the rows of a modality; None where there are none."""
        return self._places.get((model, modality))


@dataclass(frozen=True)
class PairedEmbeddings:
    """The same rows of one modality by both versions, at unit length."""

    live_NE: Tensor
    canary_NE: Tensor

    @classmethod
    def of(
        cls, live: ServedVersion, canary: ServedVersion, modality: str, rows_NF: Float32Array
    ) -> "PairedEmbeddings":
        """Embed the rows by both versions. Raises KeyError where one has no head for the modality."""
        raw_NF = torch.from_numpy(rows_NF)
        one, other = (each.head(modality).outputs(raw_NF) for each in (live, canary))
        return cls(unit_rows(one), unit_rows(other))

    def __len__(self) -> int:
        return len(self.live_NE)


def agreement(queries: PairedEmbeddings, stored: PairedEmbeddings) -> PairAgreement:
    """Score each version's queries against what the same version has stored, as after a promotion.

    Raises ValueError where scores are not finite.
    """
    live_QN = queries.live_NE @ stored.live_NE.mT
    canary_QN = queries.canary_NE @ stored.canary_NE.mT
    if not (live_QN.isfinite().all() and canary_QN.isfinite().all()):
        raise ValueError("scores are not finite")
    cosine_Q = torch.nn.functional.cosine_similarity(live_QN, canary_QN, dim=1)
    return PairAgreement(
        queries=len(queries),
        cosine_sum=float(cosine_Q.sum()),
        overlap_sum=float(kept_share(live_QN, canary_QN).sum()),
    )


class VersionComparison:
    """Compares a canary with a live version, on recent rows. Used in one thread."""

    def __init__(self, live: ServedVersion, canary: ServedVersion, recent: RecentFeatures) -> None:
        self.live = live
        self.canary = canary
        self._recent = recent
        self._stored: dict[str, tuple[int, PairedEmbeddings]] = {}

    @torch.inference_mode()
    def score(self, modality: str, rows_QF: Float32Array) -> dict[str, PairAgreement]:
        """Return the agreement by key of each learned pair that has the modality.

        Pairs are left out while there are few recent rows of the other modality.

        Raises KeyError and ValueError, where the canary cannot answer what the live one can.
        """
        queries = PairedEmbeddings.of(self.live, self.canary, modality, rows_QF)
        found = {}
        for key, partner in partners_of(modality, self.live.pairs).items():
            stored = self._stored_of(partner)
            if stored is not None:
                found[key] = agreement(queries, stored)
        return found

    def _stored_of(self, modality: str) -> PairedEmbeddings | None:
        recent = self._recent.of(self.live.model, modality)
        if recent is None or len(recent) < _LEAST_STORED:
            return None
        added, known = self._stored.get(modality, (0, None))
        if known is None or recent.added - added >= _STALE_SHARE * len(known):
            added = recent.added  # Read before the rows: one more among them does no harm.
            known = PairedEmbeddings.of(self.live, self.canary, modality, recent.rows())
            self._stored[modality] = (added, known)
        return known


def partners_of(modality: str, pairs: Collection[ModalityPair]) -> Mapping[str, str]:
    """Return the other modality by key of each pair that this modality is part of."""
    found = {}
    for pair in pairs:
        if modality in pair.modalities:
            found[pair.key] = pair.second if modality == pair.first else pair.first
    return found
