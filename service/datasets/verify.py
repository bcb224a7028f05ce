"""Validate a dataset: read every shard, report what is wrong, store what is not in the user's own bucket.

Imported by a child process for each dataset, so it imports neither the web server nor the database.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidVersion, ObjectExists, ObjectNotFound
from cmcl.contract.modality import Frozen, ModalityPair
from cmcl.contract.model import ModelSpec
from workers.storage import layout
from workers.storage.formats.user_file import Side
from workers.storage.intake import Address, DatasetIntake, Split
from workers.storage.object_store import ObjectStore
from workers.storage.shards import FEATURES


class ValidationTask(Frozen):
    """A dataset as it was posted, and the model that its shards must fit.

    `allowed`: permitted prefixes of addresses, checked again when a shard is read. `locations`: the address
    in the service's own store for each address that stands for an upload.
    """

    dataset: str
    model: str
    name: str
    pair: ModalityPair
    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...] = ()
    evaluation_share: float | None = None
    spec: ModelSpec
    allowed: tuple[str, ...] = ()
    locations: Mapping[str, str] = {}


class Killable(Protocol):
    """A process that can be killed."""

    def kill(self) -> None:
        """Kill it; does nothing if it has exited."""


class CancelToken:
    """Cancels a validation from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Killable | None = None
        self.is_cancelled = False

    def kill_on_cancel(self, process: Killable) -> None:
        """Kill the process when this is cancelled; at once, if it is."""
        with self._lock:
            self._process = process
            if self.is_cancelled:
                process.kill()

    def cancel(self) -> None:
        """Cancel, and kill the process."""
        with self._lock:
            self.is_cancelled = True
            if self._process is not None:
                self._process.kill()


class Validator(Protocol):
    """A way to validate: in this process, or in a child process."""

    def validate(
        self, store: ObjectStore, task: ValidationTask, cancel_token: CancelToken
    ) -> DatasetManifest:
        """Validate the dataset and return its manifest, which is also in the store.

        Raises InvalidDataset, InvalidUri, StorageUnavailable; anything else is a bug or a fault of the machine.
        """


Shards = tuple[Shard, ...]


def _ignore(_: str) -> None:
    """Report nothing."""


class InProcessValidator:
    """Validator in this process, for tests: their stores cannot be opened by another process."""

    def validate(
        self, store: ObjectStore, task: ValidationTask, cancel_token: CancelToken
    ) -> DatasetManifest:
        """See Validator."""
        with TemporaryDirectory(prefix="cmcl-validate-") as folder:
            return verify(store, task, Path(folder))


def verify(
    store: ObjectStore,
    task: ValidationTask,
    folder: Path,
    report: Callable[[str], None] = _ignore,
) -> DatasetManifest:
    """Check all shards, copy converted and held-out ones to our store, write the manifest last.

    `folder` is for local copies; `report` receives the address of each file before it is read.
    Raises InvalidDataset, InvalidUri, StorageUnavailable.
    """
    files = DatasetIntake(store, task.dataset, _sides(task.pair, task.spec), folder)
    reader = _Reader(files, task, report)
    training, held_out = reader.training()
    evaluation = (*reader.evaluation(), *held_out)
    _check_rows(training, task)
    if task.evaluation_share is not None:
        _check_held_out(training, held_out, task.evaluation_share)
    manifest = DatasetManifest(
        dataset=task.dataset,
        model=task.model,
        name=task.name,
        pair=task.pair,
        shards=training,
        evaluation_shards=evaluation,
    )
    return _written_first(store, manifest)


def _written_first(store: ObjectStore, manifest: DatasetManifest) -> DatasetManifest:
    """The manifest in the store: of two concurrent validations, the first one's."""
    key = layout.dataset_manifest(manifest.dataset)
    try:
        store.create(key, manifest.model_dump_json().encode())
    except ObjectExists:
        return read_manifest(store, manifest.dataset) or manifest
    return manifest


@dataclass(frozen=True)
class _Reader:
    """The shards of one dataset, taken in by their order."""

    files: DatasetIntake
    task: ValidationTask
    report: Callable[[str], None]

    def training(self) -> tuple[Shards, Shards]:
        """Shards to train on, and those of the rows that a share holds out."""
        share = self.task.evaluation_share
        if share is None:
            return tuple(self._whole()), ()
        halves = list(self._split(share))
        return (
            tuple(half.training for half in halves if half.training is not None),
            tuple(half.evaluation for half in halves if half.evaluation is not None),
        )

    def evaluation(self) -> Iterator[Shard]:
        """Shards that the user held out."""
        for index, ref in enumerate(self.task.evaluation_shards):
            yield self.files.evaluation_shard(ref, self._address(ref), index)

    def _whole(self) -> Iterator[Shard]:
        for index, ref in enumerate(self.task.shards):
            yield self.files.training_shard(ref, self._address(ref), index)

    def _split(self, share: float) -> Iterator[Split]:
        """Explicit evaluation shards have the first numbers."""
        named = len(self.task.evaluation_shards)
        for index, ref in enumerate(self.task.shards):
            yield self.files.split_shard(ref, self._address(ref), share, (index, named + index))

    def _address(self, ref: ShardRef) -> Address:
        """Report and return the address of the next file."""
        self.report(ref.uri)
        place = self.task.locations.get(ref.uri)
        return Address(ref.uri, self.task.allowed) if place is None else Address(place, None)


def read_manifest(store: ObjectStore, dataset: str) -> DatasetManifest | None:
    """The manifest of a verified dataset; None before that. Raises InvalidVersion if damaged."""
    key = layout.dataset_manifest(dataset)
    try:
        data = store.read(key)
    except ObjectNotFound:
        return None
    try:
        return DatasetManifest.model_validate_json(data)
    except ValueError as error:
        raise InvalidVersion(f"{key} cannot be read: {error}") from error


def _sides(pair: ModalityPair, spec: ModelSpec) -> tuple[Side, Side]:
    first, second = (
        Side(column, modality, spec.modalities[modality])
        for column, modality in zip(FEATURES, pair.modalities, strict=True)
    )
    return first, second


def _check_rows(shards: Shards, task: ValidationTask) -> None:
    rows, needed = sum(shard.rows for shard in shards), task.spec.training.batch_size
    if rows < needed:
        left = "" if task.evaluation_share is None else " left to train on"
        raise InvalidDataset(
            f"the training shards have {rows} rows together{left}; "
            f"one batch takes {needed} (training.batch_size), so at least that many are needed"
        )


def _check_held_out(training: Shards, held_out: Shards, share: float) -> None:
    """Rows with equal feature_a stay together, so with few distinct values the share can be far off."""
    kept, rest = (sum(shard.rows for shard in shards) for shards in (held_out, training))
    if not kept or kept > (1 + share) / 2 * (kept + rest):
        raise InvalidDataset(
            f"evaluation_share {share:g} holds out {kept} of {kept + rest} rows: rows are chosen by "
            "their feature_a, which has too few distinct values for this share; "
            "choose another share or provide evaluation_shards"
        )
