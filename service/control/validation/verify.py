"""Reading every shard of a dataset: what is wrong is said, what is not the user's own is stored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidVersion, ObjectExists, ObjectNotFound
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from service.control.validation.task import Leash, ValidationTask
from workers.storage import layout
from workers.storage.formats.user_file import Side
from workers.storage.intake import Address, DatasetIntake, Split
from workers.storage.object_store import ObjectStore
from workers.storage.shards import FEATURES

Shards = tuple[Shard, ...]


def _to_nobody(_: str) -> None:
    """Who reads within this process need not say what it is at."""


class Here:
    """Validates within this process: for tests, which bring stores that no other process can open."""

    def read(self, store: ObjectStore, task: ValidationTask, leash: Leash) -> DatasetManifest:
        """See the port, `service.control.validation.task.Reader`."""
        with TemporaryDirectory(prefix="cmcl-validate-") as folder:
            return verify(store, task, Path(folder))


def verify(
    store: ObjectStore,
    task: ValidationTask,
    folder: Path,
    tell: Callable[[str], None] = _to_nobody,
) -> DatasetManifest:
    """Check all shards, bring what is not the user's own into our store, write the manifest last.

    `folder` is for local copies; `tell` hears the address of each file before it is read.
    Raises InvalidDataset, InvalidUri, StorageUnavailable.
    """
    files = DatasetIntake(store, task.dataset, _sides(task.pair, task.spec), folder)
    taking = _Taking(files, task, tell)
    training, held_out = taking.training()
    evaluation = (*taking.evaluation(), *held_out)
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
    """The manifest that stands in the store: of two that validate at once, the first one's."""
    key = layout.dataset_manifest(manifest.dataset)
    try:
        store.create(key, manifest.model_dump_json().encode())
    except ObjectExists:
        return read_manifest(store, manifest.dataset) or manifest
    return manifest


@dataclass(frozen=True)
class _Taking:
    """The shards of one dataset, taken in by their order."""

    files: DatasetIntake
    task: ValidationTask
    tell: Callable[[str], None]

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
        """Named evaluation shards have the first numbers."""
        named = len(self.task.evaluation_shards)
        for index, ref in enumerate(self.task.shards):
            yield self.files.split_shard(ref, self._address(ref), share, (index, named + index))

    def _address(self, ref: ShardRef) -> Address:
        """Where the file lies that is read next."""
        self.tell(ref.uri)
        place = self.task.places.get(ref.uri)
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
    """Rows with an equal feature_a stay together, so few different ones can miss the share by far."""
    kept, rest = (sum(shard.rows for shard in shards) for shards in (held_out, training))
    if not kept or kept > (1 + share) / 2 * (kept + rest):
        raise InvalidDataset(
            f"evaluation_share {share:g} holds out {kept} of {kept + rest} rows: rows are chosen by "
            "their feature_a, which has too few different values for this share; "
            "ask for another share or name evaluation_shards"
        )
