"""Encode the items of one unit in full batches, with some batches in flight.

The batches of a unit follow from its items alone, so that encoding it again gives the same bytes: features
depend on the shape of their batch in the last bits.

Shapes: B items of a batch, F width of the feature.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.media import Audio, Decoded, Video, is_flat
from workers.files.shards import wrong_values
from workers.prepare.encoded_items import EncodedItem
from workers.sandbox.items import Item

# One is encoded while the next one is sent.
BATCHES_IN_FLIGHT = 2
# Of decoded items in one batch. Batches in flight lie in Ray's object store, which may have 200 MB.
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


class EncoderPort(Protocol):
    """Port of an encoder: batches are submitted, and their features fetched later."""

    def submit(self, items: Sequence[Decoded]) -> Any:
        """Begin to encode one batch. Raises EncoderLost."""
        ...

    def wait(self, pending: Any) -> Encoded:
        """Return the features of a batch. Raises EncoderLost, EncoderMismatch, EncoderUnusable."""
        ...


class SideEncoder:
    """Encodes the items of one side of a unit. Equal items are encoded once.

    `known`: items that were encoded before. `new`: those that this object encoded. `flat`: pictures of one colour.
    """

    def __init__(
        self, encoder: EncoderPort, spec: EncoderSpec, known: Mapping[bytes, EncodedItem]
    ) -> None:
        self._encoder, self._spec, self.known = encoder, spec, known
        self.new: dict[bytes, EncodedItem] = {}
        self.flat = {key for key, item in known.items() if item.is_flat}
        self._by_length = spec.takes == "text"
        # Number of rows by key of their item.
        self._rows = Counter[bytes]()
        self._waiting: list[tuple[bytes, Decoded]] = []
        self._waiting_bytes = 0
        self._in_flight: deque[tuple[list[bytes], Any]] = deque()
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
            raise TypeError("the child sent no item where the side has an encoder")
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

    def feature(self, key: bytes) -> np.ndarray | str:
        """Return the feature (F) of an item after `finish`, or the reason why it has none."""
        if reason := self._reasons.get(key):
            return reason
        return (self.known.get(key) or self.new[key]).feature_F

    def _submit_waiting(self) -> None:
        for batch in self._cut():
            self._submit(batch)

    def _submit(self, batch: list[tuple[bytes, Decoded]]) -> None:
        if len(self._in_flight) >= BATCHES_IN_FLIGHT:
            self._take_oldest()
        pending = self._encoder.submit([item for _, item in batch])
        self._in_flight.append(([key for key, _ in batch], pending))

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
        encoded = self._encoder.wait(pending)
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
        """Keep a feature."""
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
