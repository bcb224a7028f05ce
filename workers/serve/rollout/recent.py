"""Raw features that were asked for a moment ago: what a candidate is tried on. Memory only.

Shapes: B rows of a request, N rows that are kept, F width of the raw feature.
"""

import threading
from collections import OrderedDict

import numpy as np
import xxhash

from workers.serve.versions.loading import Float32Array

_KEPT_ROWS = 256
# Few of each request: 4096 rows of one upload would leave nothing of what others ask.
_ROWS_OF_A_REQUEST = 4
# Modalities of models; 256 rows of width 1024 are 1 MiB for each.
_MOST_PLACES = 64


class RecentRows:
    """The last different rows of one modality. Kept by the event loop, read by the heavy thread.

    Equal rows are kept once: a probe that sends the same feature every second would else fill the
    place, and versions agree on the order of equal rows whatever they have learned.
    """

    def __init__(self, width: int, most: int = _KEPT_ROWS) -> None:
        self.width = width
        self.added = 0
        self._most = most
        self._rows: OrderedDict[int, Float32Array] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, rows_BF: Float32Array) -> None:
        """Some of these, spread over the request."""
        step = -(-len(rows_BF) // _ROWS_OF_A_REQUEST)
        for row_F in rows_BF[::step]:
            # A copy, because a view would hold on to the whole request.
            self._keep_one(np.array(row_F, order="C"))

    def rows(self) -> Float32Array:
        """All that are kept (N × F), the oldest first."""
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
            if len(self._rows) > self._most:
                self._rows.popitem(last=False)
        self.added += 1


class RecentFeatures:
    """`RecentRows` by model and modality: the places that were asked for last."""

    def __init__(self, most_places: int = _MOST_PLACES) -> None:
        self._most_places = most_places
        self._places: OrderedDict[tuple[str, str], RecentRows] = OrderedDict()

    def keep(self, model: str, modality: str, rows_BF: Float32Array) -> None:
        """Remember some rows of a request."""
        place, width = (model, modality), rows_BF.shape[1]
        known = self._places.get(place)
        if known is None or known.width != width:  # Of a deleted model that had the same name.
            known = self._places[place] = RecentRows(width)
        self._places.move_to_end(place)
        if len(self._places) > self._most_places:
            self._places.popitem(last=False)
        known.keep(rows_BF)

    def of(self, model: str, modality: str) -> RecentRows | None:
        """None where nothing is remembered."""
        return self._places.get((model, modality))
