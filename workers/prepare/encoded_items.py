"""Features of items that were encoded before, of one owner and one encoder, by the digest of the item.

An object has the items that one unit encoded: an index, sorted by digest, then the features in that order. Objects do
not change, so a process reads each index once. Garbage collection deletes them some time after they were written.

Shapes: N items of an object, K of these that are wanted, F width of the feature.
"""

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import ObjectNotFound
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable

# Half of a digest of 32 bytes, as ids are compared.
_DIGEST_BYTES = 16
# By the first half, little endian, the entries are sorted.
_ENTRY = np.dtype([("first", "<u8"), ("second", "<u8"), ("is_flat", "?")])
# Older objects are not searched: these have four million items, and indexes of 70 MB.
_MOST_OBJECTS = 4096
_THREADS = 16
# Features that are nearer are read together.
_GAP_BYTES = 64 << 10
# By address of the store and key, the oldest first.
_indexes: dict[tuple[str, str], np.ndarray] = {}


@dataclass(frozen=True, eq=False)
class EncodedItem:
    """The feature (F) of an item. `is_flat`: it is a picture of one colour."""

    feature_F: np.ndarray
    is_flat: bool = False


class EncodedItems:
    """The items of an owner that this encoder has encoded."""

    def __init__(
        self, store: ObjectStore, owner: str, spec: EncoderSpec, identity: EncoderIdentity
    ) -> None:
        # With other limits, other items can be decoded.
        described = [identity.digest, spec.max_pixels, spec.max_seconds]
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        self._store, self._folder = store, layout.encoded_items(owner, digest)
        self._width = identity.width

    def find(self, keys: Collection[bytes]) -> dict[bytes, EncodedItem]:
        """Return those of these items that are stored. `keys`: digests of the raw bytes (32 bytes)."""
        found: dict[bytes, EncodedItem] = {}
        # Sorted ones are found ten times as fast.
        missing = sorted(keys, key=_first)
        halves = _halves(missing)
        objects = retry_unavailable(lambda: list(self._store.keys(self._folder)))
        newest = objects[: -_MOST_OBJECTS - 1 : -1]
        with ThreadPoolExecutor(_THREADS) as threads:
            for key, index_N in zip(newest, threads.map(self._index, newest), strict=True):
                if places := _places(index_N, halves):
                    wanted = {place: missing[number] for place, number in places.items()}
                    found |= self._read(key, index_N, wanted, threads)
                    missing = [each for each in missing if each not in found]
                    halves = _halves(missing)
        return found

    def add(self, items: Mapping[bytes, EncodedItem]) -> None:
        """Store items that were encoded; at least one."""
        keys = sorted(items, key=_first)
        index_N = np.empty(len(keys), _ENTRY)
        index_N["first"], index_N["second"] = _halves(keys)
        index_N["is_flat"] = [items[key].is_flat for key in keys]
        index = index_N.tobytes()
        features_NF = np.stack([items[key].feature_F for key in keys]).astype("<f4")
        digest = hashlib.sha256(index).hexdigest()
        key = layout.encoded_object(self._folder, int(time.time()), digest, len(keys))
        retry_unavailable(partial(self._store.put, key, index + features_NF.tobytes()))

    def _index(self, key: str) -> np.ndarray:
        known = (self._store.uri, key)
        if known not in _indexes:
            size = layout.encoded_count(key) * _ENTRY.itemsize
            try:
                read = partial(self._store.read_range, key, 0, size)
                index_N = np.frombuffer(retry_unavailable(read), _ENTRY)
            except ObjectNotFound:
                return np.empty(0, _ENTRY)
            while len(_indexes) >= _MOST_OBJECTS:
                del _indexes[next(iter(_indexes))]
            _indexes[known] = index_N
        return _indexes[known]

    def _read(
        self, key: str, index_N: np.ndarray, places: Mapping[int, bytes], threads: Executor
    ) -> dict[bytes, EncodedItem]:
        """Return the items at these places of an object; none if it was deleted."""
        row_bytes = 4 * self._width
        place_K = np.array(sorted(places))
        is_far_K = np.diff(place_K) * row_bytes > _GAP_BYTES
        runs = np.split(place_K, np.flatnonzero(is_far_K) + 1)

        def read(run: np.ndarray) -> bytes:
            start, stop = (
                index_N.nbytes + int(place) * row_bytes for place in (run[0], run[-1] + 1)
            )
            return retry_unavailable(partial(self._store.read_range, key, start, stop))

        found = {}
        try:
            for run, data in zip(runs, threads.map(read, runs), strict=True):
                features_NF = np.frombuffer(data, "<f4").reshape(-1, self._width)
                for place in run.tolist():
                    found[places[place]] = EncodedItem(
                        features_NF[place - run[0]], bool(index_N["is_flat"][place])
                    )
        except ObjectNotFound:
            return {}
        return found


def _places(index_N: np.ndarray, halves: tuple[np.ndarray, np.ndarray]) -> dict[int, int]:
    """Return which of these digests an object has: their numbers, by their place in it."""
    first_K, second_K = halves
    if not len(index_N):
        return {}
    place_K = np.searchsorted(index_N["first"], first_K).clip(max=len(index_N) - 1)
    is_here_K = (index_N["first"][place_K] == first_K) & (index_N["second"][place_K] == second_K)
    return dict(zip(place_K[is_here_K].tolist(), np.flatnonzero(is_here_K).tolist(), strict=True))


def _first(key: bytes) -> int:
    return int.from_bytes(key[:8], "little")


def _halves(keys: Collection[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the second eight bytes of each digest, as numbers."""
    digests = b"".join(key[:_DIGEST_BYTES] for key in keys)
    first_K, second_K = np.ascontiguousarray(np.frombuffer(digests, "<u8").reshape(-1, 2).T)
    return first_K, second_K
