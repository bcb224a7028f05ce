"""The process of an encoder in preparation: an actor of Ray, which encodes batches of any dataset.

It loads its encoder once, and compares it with the record in the store. Each batch names the digest of the expected
identity: an actor that restarted with another model refuses it.

Shapes: B items of a batch, F width of the feature.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from PIL import Image

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.storage.object_store import retry_unavailable
from cmcl.storage.uris import open_store
from workers.encoders.identity import check_or_record
from workers.encoders.media import Decoded
from workers.encoders.port import EncoderMismatch, EncoderUnusable, FrozenEncoder
from workers.encoders.registry import load_encoder
from workers.prepare.encoding import Encoded

# A batch that was encoded when the process ended may be the cause, or a node that is short of memory.
_MOST_ENDS = 3


@dataclass(frozen=True)
class Started:
    """The identity of the encoder that an actor loaded, or why it cannot be used.

    `mismatch`: the encoder differs from its record.
    """

    identity: EncoderIdentity | None = None
    error: str = ""
    mismatch: bool = False


class EncoderActor:
    """A process with one encoder. `store_uri`: store of the records of encoders."""

    def __init__(self, spec: EncoderSpec, store_uri: str) -> None:
        self._spec, self._store_uri = spec, store_uri
        self._encoder: FrozenEncoder[Any] | None = None
        self._digest = ""

    def start(self) -> Started:
        """Load and check the encoder."""
        try:
            return Started(self._loaded().identity())
        except (EncoderUnusable, EncoderMismatch) as error:
            return Started(error=str(error), mismatch=isinstance(error, EncoderMismatch))

    def encode(self, items: Sequence[Any], digest: str, batch: str) -> Encoded:
        """Encode one batch. `digest`: of the expected identity. `batch`: what it is, the same in each try.

        Raises EncoderMismatch, EncoderUnusable.
        """
        encoder = self._loaded()
        if self._digest != digest:
            raise EncoderMismatch(
                f"encoder {self._spec.name!r} was loaded again and is another one: the digest of its "
                f"identity is {self._digest}, expected {digest}"
            )
        with _counted(self._spec.name, batch):
            return encode_batch(encoder, [from_argument(item) for item in items])

    def _loaded(self) -> FrozenEncoder[Any]:
        if self._encoder is None:
            encoder = load_encoder(self._spec)
            retry_unavailable(partial(check_or_record, encoder, open_store(self._store_uri)))
            self._encoder, self._digest = encoder, encoder.identity().digest
        return self._encoder


@contextmanager
def _counted(name: str, batch: str) -> Iterator[None]:
    """Count on this node's disk how often the process ended or failed while a batch was encoded, and refuse it then.

    To their senders, batches that waited in the process, perhaps of other owners, have failed in the same way.
    """
    path = Path(gettempdir()) / f"cmcl-batch-{hashlib.sha256(batch.encode()).hexdigest()}"
    ends = path.stat().st_size if path.exists() else 0
    if ends >= _MOST_ENDS:
        path.unlink(missing_ok=True)
        raise EncoderUnusable(
            f"encoder {name!r} ended or failed {ends} times while it encoded {batch}. An item may need more memory than "
            "its process or its GPU has: leave it out, or give the encoder a smaller max_batch or more memory"
        )
    with path.open("ab") as file:
        file.write(b".")
    yield
    path.unlink(missing_ok=True)


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


def to_argument(item: Decoded) -> Any:
    """Return an item as an argument of a Ray task: an image as an array, which Ray passes on without copying."""
    return np.asarray(item) if isinstance(item, Image.Image) else item


def from_argument(item: Any) -> Decoded:
    """Return the item of `to_argument`."""
    decoded: Decoded = Image.fromarray(item) if isinstance(item, np.ndarray) else item
    return decoded
