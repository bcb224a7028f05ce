"""The port of frozen encoders, which preparation and the endpoint share.

Shapes: B items, F width of the raw feature, V rows of a pass: one for each window of each item.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec

if TYPE_CHECKING:
    from workers.encoders.media import Decoded, Raw

ItemT = TypeVar("ItemT")
Float32Array = npt.NDArray[np.float32]


class EncoderUnusable(Exception):
    """The encoder cannot start: a package or the model is missing, or its width is not the declared one."""


class EncoderMismatch(Exception):
    """The encoder is not the one that computed the earlier features."""


class FrozenEncoder(ABC, Generic[ItemT]):
    """Base class of all kinds, built in or not.

    Built from a declaration, on its device; building raises EncoderUnusable. `registry.load_encoder` builds
    one, checks its width and warms it up.
    """

    # Which of the fields `method`, `pooling`, `max_tokens` and `options` this kind reads. If another one of them is
    # set, the encoder does not start: no setting is without effect.
    uses: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec

    @abstractmethod
    def identity(self) -> EncoderIdentity:
        """Return everything that decides the features of an item. See `identity.identity_of`."""

    @abstractmethod
    def load(self, decoded: "Decoded") -> ItemT:
        """Prepare one decoded item for a pass. Raises ValueError, whose message the user gets.

        Called in another thread than `features`: items are loaded while others are encoded.
        """

    @abstractmethod
    def features(self, items: Sequence[ItemT]) -> Float32Array:
        """Return features (B × F) of loaded items; at least one, at most `max_batch`.

        A row must not depend on the others: items of several requests share a pass.
        """

    def read(self, raw: "Raw") -> ItemT:
        """Decode and load one raw item. Raises ValueError, whose message the user gets."""
        # Imported here: replicas of the endpoint import this file, and decode nothing.
        from workers.encoders.decoding import decode
        from workers.encoders.media import Limits

        return self.load(decode(self.spec.takes, raw, Limits.from_spec(self.spec)))

    def probe_items(self) -> "list[Decoded]":
        """The items of its fingerprint. Override it where the generated ones do not suit, such as for
        lists of numbers of another length than 2.
        """
        from workers.encoders.probes import generated_items

        return generated_items(self.spec)


def as_features(
    spec: EncoderSpec, rows_VF: npt.NDArray[np.floating], windows: Sequence[int] | None = None
) -> Float32Array:
    """Features (B × F) from a model's output: the mean over each item's windows, scaled if declared.

    `windows`: how many consecutive rows each item has; one by default.
    """
    rows: npt.NDArray[np.floating] = np.asarray(rows_VF, dtype=np.float32)
    if windows is not None and any(count != 1 for count in windows):
        ends = np.cumsum(windows)
        rows = np.stack(
            [rows[end - count : end].mean(axis=0) for end, count in zip(ends, windows, strict=True)]
        )
    if spec.normalize:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths == 0, 1, lengths)
    return np.ascontiguousarray(rows, dtype=np.float32)
