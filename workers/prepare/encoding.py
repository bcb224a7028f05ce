"""Encode the items of one unit in full batches, with some batches in flight; and find those that were encoded before.

The batches of a unit follow from its items alone, so that encoding it again gives the same bytes: features
depend on the shape of their batch in the last bits.

Shapes: B items of a batch, N items of an object in the store, K of these that are wanted, F width of the feature.
"""

import hashlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import ObjectNotFound
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from workers.encoders.decoding import is_flat
from workers.encoders.media import Audio, Decoded, Item, Video
from workers.encoders.port import FrozenEncoder
from workers.files.columns import wrong_values

# One is encoded while the next one is sent.
BATCHES_IN_FLIGHT = 2
# Bytes of decoded items in one batch. Batches in flight lie in Ray's object store, which may have 200 MB.
BATCH_BYTES = 16 << 20
# Bytes of texts that are collected before they are sorted by length. A unit of captions has less.
_WAITING_BYTES = 64 << 20


class EncoderLost(Exception):
    """The processes of an encoder have ended. A retry can succeed with a new lease."""


@dataclass(frozen=True)
class Encoded:
    """Features (B × F) of one batch. `errors`: reasons, by position, for items that cannot be encoded."""

    features_BF: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EncodedItem:
    """The feature (F) of an item. `is_flat`: it is a picture of one colour."""

    feature_F: np.ndarray
    is_flat: bool = False


def encode_batch(encoder: FrozenEncoder[Any], items: Sequence[Decoded]) -> Encoded:
    """Load and encode one batch. An item that cannot be loaded gets a reason instead of a feature."""
    loaded, places, errors = [], [], {}
    for place, item in enumerate(items):
        try:
            loaded.append(encoder.load(item))
            places.append(place)
        except ValueError as error:
            errors[place] = str(error)
    features_BF = np.full((len(items), encoder.spec.width), np.nan, np.float32)
    if loaded:
        features_BF[places] = encoder.features(loaded)
    return Encoded(features_BF, errors)


# Begins to encode one batch, and returns a function that waits for its features. Raises EncoderLost; so does that
# function, and EncoderMismatch and EncoderUnusable.
Encode = Callable[[Sequence[Decoded]], Callable[[], Encoded]]


@dataclass(frozen=True)
class LeasedEncoder:
    """An encoder as units receive it: its identity, and the names of its processes.

    Without any it has not started, and units can only use items that it encoded before.
    """

    spec: EncoderSpec
    identity: EncoderIdentity
    actors: tuple[str, ...]

    def connect(self, first: int, what: str) -> Encode:
        """Return the encoder for one side of a unit. `first`: number of the actor that gets its first batch.

        `what`: the items, for messages; the same when the unit is tried again, and different for each side.
        """

        def has_not_started(_items: Sequence[Decoded]) -> Callable[[], Encoded]:
            raise EncoderLost(f"encoder {self.spec.name!r} has not started")

        return has_not_started


class SideEncoder:
    """Encodes the items of one side of a unit. Equal items are encoded once.

    `known`: items that were encoded before. `new`: those that this object encoded. `flat`: pictures of one colour.
    """

    def __init__(
        self, encode: Encode, spec: EncoderSpec, known: Mapping[bytes, EncodedItem]
    ) -> None:
        self._encode, self._spec, self.known = encode, spec, known
        self.new: dict[bytes, EncodedItem] = {}
        self.flat = {key for key, item in known.items() if item.is_flat}
        self._by_length = spec.takes == "text"
        # Number of rows by key of their item.
        self._rows = Counter[bytes]()
        self._waiting: list[tuple[bytes, Decoded]] = []
        self._waiting_bytes = 0
        self._in_flight: deque[tuple[list[bytes], Callable[[], Encoded]]] = deque()
        self._reasons: dict[bytes, str] = {}
        self.rows_done = 0
        """Number of added rows whose item is encoded, or cannot be."""

    def add(self, key: bytes, item: Item | None) -> None:
        """Add the item of a row; None if it is known. Equal keys mean equal items."""
        self._rows[key] += 1
        if self._rows[key] > 1 or key in self.known:
            self.rows_done += key in self.known or key in self.new or key in self._reasons
            return
        if item is None or isinstance(item, np.ndarray):
            # A child that was taken over: it costs its row, and not the preparation.
            self._reasons[key] = "the decoder sent no item for the encoder"
            self.rows_done += 1
            return
        if isinstance(item, Image.Image) and is_flat(item):
            self.flat.add(key)
        size = size_of(item)
        if self._waiting_bytes + size > (_WAITING_BYTES if self._by_length else BATCH_BYTES):
            self._submit_waiting()
        self._waiting.append((key, item))
        self._waiting_bytes += size
        if not self._by_length and len(self._waiting) == self._spec.max_batch:
            self._submit_waiting()

    def finish(self) -> Iterator[None]:
        """Encode the remaining items, and wait for all features. Yields after each batch."""
        for batch in self._cut():
            self._submit(batch)
            yield
        while self._in_flight:
            self._take_oldest()
            yield
        assert self.rows_done == self._rows.total(), "a row has neither a feature nor a reason"

    def feature(self, key: bytes) -> np.ndarray | str:
        """Return the feature (F) of an item after `finish`, or the reason why it has none."""
        if reason := self._reasons.get(key):
            return reason
        return (self.known.get(key) or self.new[key]).feature_F

    def _submit_waiting(self) -> None:
        for batch in self._cut():
            self._submit(batch)

    def _submit(self, batch: list[tuple[bytes, Decoded]]) -> None:
        assert 0 < len(batch) <= self._spec.max_batch
        if len(self._in_flight) >= BATCHES_IN_FLIGHT:
            self._take_oldest()
        pending = self._encode([item for _, item in batch])
        self._in_flight.append(([key for key, _ in batch], pending))
        assert len(self._in_flight) <= BATCHES_IN_FLIGHT

    def _cut(self) -> list[list[tuple[bytes, Decoded]]]:
        """Divide the waiting items into batches of at most `max_batch` items and BATCH_BYTES."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self._by_length:
            # A batch is as wide as its longest text. The longest texts come first: a batch that exceeds the
            # memory then fails early.
            waiting.sort(key=lambda pair: (-size_of(pair[1]), pair[0]))
        batches: list[list[tuple[bytes, Decoded]]] = []
        room = 0
        for key, item in waiting:
            size = size_of(item)
            if not batches or len(batches[-1]) >= self._spec.max_batch or size > room:
                batches.append([])
                room = BATCH_BYTES
            batches[-1].append((key, item))
            room -= size
        return batches

    def _take_oldest(self) -> None:
        keys, pending = self._in_flight.popleft()
        encoded = pending()
        wrong = dict(encoded.errors)
        width = encoded.features_BF.shape[1]
        if encoded.features_BF.shape != (len(keys), self._spec.width):
            wrong = dict.fromkeys(
                range(len(keys)),
                f"encoder {self._spec.name!r} gave {len(encoded.features_BF)} features of width {width} "
                f"for {len(keys)} items; expected width {self._spec.width}",
            )
        else:
            for place, found, permitted in wrong_values(encoded.features_BF):
                wrong.setdefault(
                    place,
                    f"the feature that encoder {self._spec.name!r} computed {found}{permitted}",
                )
        for place, key in enumerate(keys):
            if place in wrong:
                self._reasons[key] = wrong[place]
            else:
                self.new[key] = EncodedItem(encoded.features_BF[place], key in self.flat)
            self.rows_done += self._rows[key]


class GivenFeatures:
    """In place of a `SideEncoder` where raw rows contain the features of a side."""

    known: Mapping[bytes, EncodedItem] = {}
    new: Mapping[bytes, EncodedItem] = {}
    flat: Set[bytes] = frozenset()

    def __init__(self, modality: str, width: int) -> None:
        self._modality, self._width = modality, width
        self._features: dict[bytes, np.ndarray] = {}
        self.rows_done = 0

    def add(self, key: bytes, item: Item | None) -> None:
        """Keep a feature; None if it was added before."""
        if item is not None:
            self._features[key] = np.asarray(item, np.float32)
        self.rows_done += 1

    def finish(self) -> Iterator[None]:
        """Do nothing: the items are features."""
        yield from ()

    def feature(self, key: bytes) -> np.ndarray | str:
        """Return the feature (F), or the reason why it cannot be used."""
        feature_F = self._features[key]
        if feature_F.shape != (self._width,):
            return (
                f"{self._modality} has {feature_F.size} numbers, the model declares {self._width}"
            )
        for _, found, permitted in wrong_values(feature_F[None]):
            return f"{self._modality} {found}{permitted}"
        return feature_F


def size_of(item: Decoded) -> int:
    """Return the approximate size of a decoded item in bytes."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Audio):
        return item.samples_WN.nbytes
    if isinstance(item, Video):
        return item.frames_WTYXC.nbytes
    if isinstance(item, tuple):
        return 8 * len(item)
    return item.width * item.height * 3


# Half of a digest of 32 bytes, as ids are compared.
_DIGEST_BYTES = 16
# By the first half, little endian, the entries are sorted.
# `checksum`: of the features, and of the encoder that they are of.
_ENTRY = np.dtype([("first", "<u8"), ("second", "<u8"), ("is_flat", "?"), ("checksum", "<u8")])
# Older objects are not searched: these have four million items, and indexes of 70 MB.
_MOST_OBJECTS = 4096
_THREADS = 16
# Features that are nearer are read together.
_GAP_BYTES = 64 << 10
# By address of the store and key, the oldest first. Threads of several units add to them.
_indexes: dict[tuple[str, str], np.ndarray] = {}
_indexes_lock = threading.Lock()


class EncodedItems:
    """The items of an owner that this encoder has encoded, by the digest of the item.

    An object of the store has those that one unit encoded: an index, sorted by digest, then the features in that
    order. Objects do not change, so a process reads each index once. Garbage collection deletes them some time after
    they were written.
    """

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
        features_NF = np.stack([items[key].feature_F for key in keys]).astype("<f4")
        index_N["checksum"] = [self._checksum(feature_F) for feature_F in features_NF]
        index = index_N.tobytes()
        digest = hashlib.sha256(index).hexdigest()
        key = layout.encoded_object(self._folder, int(time.time()), digest, len(keys))
        retry_unavailable(partial(self._store.put, key, index + features_NF.tobytes()))

    def _checksum(self, feature_F: np.ndarray) -> int:
        data = self._folder.encode() + feature_F.tobytes()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

    def _index(self, key: str) -> np.ndarray:
        """Return the index of an object; an empty one if the object was deleted or is damaged: items are encoded again."""
        known = (self._store.uri, key)
        index_N = _indexes.get(known)
        if index_N is None:
            size = layout.encoded_count(key) * _ENTRY.itemsize
            try:
                read = partial(self._store.read_range, key, 0, size)
                index = retry_unavailable(read)
            except ObjectNotFound:
                return np.empty(0, _ENTRY)
            if hashlib.sha256(index).hexdigest()[:16] != layout.encoded_digest(key):
                return np.empty(0, _ENTRY)
            index_N = np.frombuffer(index, _ENTRY)
            with _indexes_lock:
                while len(_indexes) >= _MOST_OBJECTS:
                    del _indexes[next(iter(_indexes))]
                _indexes[known] = index_N
        return index_N

    def _read(
        self, key: str, index_N: np.ndarray, places: Mapping[int, bytes], threads: Executor
    ) -> dict[bytes, EncodedItem]:
        """Return the items at these places of an object, without damaged ones; none if it was deleted."""
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
                for place in run.tolist():
                    start = (place - int(run[0])) * row_bytes
                    row = data[start : start + row_bytes]
                    feature_F = np.frombuffer(row[: len(row) // 4 * 4], "<f4")
                    if self._checksum(feature_F) == index_N["checksum"][place]:
                        is_flat = bool(index_N["is_flat"][place])
                        found[places[place]] = EncodedItem(feature_F, is_flat)
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
