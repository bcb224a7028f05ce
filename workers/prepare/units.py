"""Prepare one unit of a dataset on a worker process: a range of raw rows, or a file of features.

The shards of a unit are written to the store, then its record. After a crash, at most the units in work are
repeated. Encoded items are also found by their digest: in another dataset, and after a retry.
"""

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from cmcl.contract.dataset import RejectedRow, Shard
from cmcl.contract.errors import ObjectNotFound
from cmcl.contract.modality import Frozen, Modality
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.uris import open_store
from workers.prepare.encoder_pool import LeasedEncoder
from workers.prepare.features import FeatureFile, read_features
from workers.prepare.raw_rows import RawSource, RawUnit

if TYPE_CHECKING:
    from workers.sandbox.child import Child


@dataclass(frozen=True)
class DatasetContext:
    """Values that all units of a dataset share.

    `files_to_train`: number of files to train on; the files after them are held out. `encoders`: those of the
    two sides; None for a side of features. `leaves_out`: rows of features that cannot be used are left out.
    `file_memory`: bytes of memory of each process that reads files.
    """

    store: str
    dataset: str
    request: int
    owner: str
    source: RawSource
    files_to_train: int
    share: float | None
    leaves_out: bool
    file_memory: int
    encoders: tuple[LeasedEncoder | None, LeasedEncoder | None] = (None, None)

    @property
    def encoders_have_started(self) -> bool:
        """Whether units can encode items; without, they can only use items that were encoded before."""
        return all(encoder is None or encoder.actors for encoder in self.encoders)

    @property
    def encoders_digest(self) -> str:
        """Digest over the identity of the encoder of each side, or the width of its features."""
        sides = [
            f"features:{side.width}" if encoder is None else encoder.identity.digest
            for side, encoder in zip(self.source.sides, self.encoders, strict=True)
        ]
        return hashlib.sha256(json.dumps(sides).encode()).hexdigest()


@dataclass(frozen=True)
class UnitTask:
    """One unit. `index`: its number, which orders shards. `raw`: None for a file of features.

    `left_out`: for features, reasons by row that are known from other files.
    """

    index: int
    file: int
    raw: RawUnit | None = None
    left_out: dict[int, str] = field(default_factory=dict)

    def digest(self, context: DatasetContext) -> str:
        """Digest over everything that decides the result."""
        described = [
            self.index,
            self.file,
            None if self.raw is None else self.raw.model_dump(mode="json"),
            sorted(self.left_out.items()),
            context.source.files[self.file].model_dump(mode="json"),
            context.share,
            context.leaves_out,
            context.encoders_digest,
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


# Ids that a warning names.
FIRST_FLAT = 3


class FlatPictures(Frozen):
    """Rows whose picture has one colour: their number, and the ids of the first ones."""

    rows: int
    first: tuple[str, ...]


class UnitRecord(Frozen):
    """The result of a unit: its shards, and the rows that are left out.

    `encoded`: number of items that were encoded for it. `flat`: by modality, if there are any.
    """

    training: Shard | None = None
    evaluation: Shard | None = None
    rejected: tuple[RejectedRow, ...] = ()
    encoded: int = 0
    flat: dict[Modality, FlatPictures] = Field(default={})

    @property
    def rows(self) -> int:
        """Number of rows, good and bad."""
        shards = (self.training, self.evaluation)
        return sum(shard.rows for shard in shards if shard is not None) + len(self.rejected)


def prepare_unit(
    context: DatasetContext, task: UnitTask, child: "Child", check: Callable[[], None]
) -> Generator[int, None, UnitRecord]:
    """Prepare a unit, unless it is done already. Yields numbers of its rows that are done.

    `check` raises after a cancellation.

    Raises InvalidDataset, InvalidUri, StorageUnavailable, EncoderLost, EncoderMismatch.
    """
    store, digest = open_store(context.store), task.digest(context)
    key = layout.preparation_unit(context.dataset, context.request, digest)
    done = _read(store, key)
    if done is not None:
        return done.model_copy(update={"encoded": 0})
    if task.raw is None:
        record = _features(context, task, digest, child)
    else:
        from workers.prepare.raw_unit import RawUnitEncoder

        record = yield from RawUnitEncoder(context, task, task.raw, store).prepare(child, check)
    check()
    retry_unavailable(partial(store.put, key, record.model_dump_json().encode()))
    return record


def _read(store: ObjectStore, key: str) -> UnitRecord | None:
    """Return a record; None if there is none, or it cannot be read."""
    try:
        return UnitRecord.model_validate_json(retry_unavailable(partial(store.read, key)))
    except (ObjectNotFound, ValidationError):
        return None


def _features(context: DatasetContext, task: UnitTask, digest: str, child: "Child") -> UnitRecord:
    source, held_out = context.source, task.file >= context.files_to_train
    ref = source.files[task.file]
    stored = source.locations.get(ref.uri)
    named = len(source.files) - context.files_to_train
    file = FeatureFile(
        store=context.store,
        dataset=context.dataset,
        ref=ref,
        address=stored or ref.uri,
        allowed=None if stored else source.allowed_prefixes,
        sides=source.sides,
        is_held_out=held_out,
        share=context.share,
        index=task.file - context.files_to_train if held_out else task.file,
        # Evaluation shards that the user named have the first numbers.
        evaluation_index=named + task.file,
        left_out=task.left_out if context.leaves_out else None,
        ids_key=layout.preparation_ids(context.dataset, context.request, digest),
    )
    shards = read_features(child, file)
    return UnitRecord(
        training=shards.training, evaluation=shards.evaluation, rejected=shards.rejected
    )
