"""Reading every shard of a dataset before anything is trained on it."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from service.control.intake import NewDataset
from service.database.rows import DatasetRecord
from workers.contract.dataset import DatasetManifest, Shard, ShardRef
from workers.contract.errors import (
    InvalidDataset,
    InvalidVersion,
    ObjectExists,
    ObjectNotFound,
    StorageUnavailable,
    WorkerError,
)
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec
from workers.storage import layout
from workers.storage.formats.user_file import Side
from workers.storage.intake import Address, DatasetIntake, Split
from workers.storage.port import ObjectStore
from workers.storage.shards import FEATURES

logger = logging.getLogger(__name__)

Shards = tuple[Shard, ...]


@dataclass(frozen=True)
class _Validation:
    """One that was begun, and for which turn of its job."""

    turn: int
    future: Future[DatasetManifest]


class Validations:
    """Runs validations beside the reconciler: reading one dataset must not hold up other models.

    Nothing is lost with it: a control plane that starts anew simply validates again.
    """

    def __init__(self, executor: Executor, when_done: Callable[[], None]) -> None:
        self._executor = executor
        self._when_done = when_done
        self._running: dict[str, _Validation] = {}

    def outcome(
        self, dataset: str, turn: int, work: Callable[[], DatasetManifest]
    ) -> DatasetManifest | None:
        """What `work` answered or raised; None while it is still at it. Asking starts it.

        `turn` is another number each time that the dataset's job is validated: what was found in an
        earlier turn, which another service ended, says nothing about the files as they are now.
        """
        running = self._running.get(dataset)
        if running is None or running.turn != turn:
            self.forget(dataset)
            running = self._running[dataset] = _Validation(turn, self._submit(work))
        if not running.future.done():
            return None
        del self._running[dataset]
        try:
            return running.future.result()
        except WorkerError:
            raise
        except Exception as error:
            # A mistake of ours, or a full disk: to be tried again, and not for ever.
            logger.exception("dataset %s could not be read", dataset, extra={"dataset": dataset})
            words = f"the shards could not be read ({type(error).__name__}); the log says why"
            raise StorageUnavailable(words) from error

    def _submit(self, work: Callable[[], DatasetManifest]) -> Future[DatasetManifest]:
        future = self._executor.submit(work)
        future.add_done_callback(lambda _: self._when_done())
        return future

    def is_under_way(self, dataset: str, turn: int) -> bool:
        """Whether it was begun here in this turn, and its outcome was not taken yet."""
        running = self._running.get(dataset)
        return running is not None and running.turn == turn

    def forget(self, dataset: str) -> None:
        """Nobody waits for it any more."""
        running = self._running.pop(dataset, None)
        if running is not None:
            running.future.cancel()

    def close(self) -> None:
        """Start nothing any more, and do not wait for what runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def as_written(uri: str) -> str:
    """A resolver where every address is the user's own."""
    return uri


def verify(
    store: ObjectStore,
    dataset: DatasetRecord,
    spec: ModelSpec,
    allowed: tuple[str, ...],
    resolve: Callable[[str], str] = as_written,
) -> DatasetManifest:
    """Check all shards, bring what is not the user's own into our store, write the manifest last.

    `allowed`: prefixes of users' addresses, looked at again as they are read. `resolve`: where an
    address that is not one of those lies in our store, such as that of an upload.
    Raises InvalidDataset, InvalidUri, StorageUnavailable.
    """
    request = NewDataset.model_validate(dataset.request)
    sides = _sides(request.pair, spec)
    with TemporaryDirectory(prefix="cmcl-validate-") as folder:
        files = DatasetIntake(store, dataset.id, sides, Path(folder))
        taking = _Taking(files, request, allowed, resolve)
        training, held_out = taking.training()
        evaluation = (*taking.evaluation(), *held_out)
    _check_rows(training, spec, request)
    if request.evaluation_share is not None:
        _check_held_out(training, held_out, request.evaluation_share)
    manifest = DatasetManifest(
        dataset=dataset.id,
        model=request.model,
        name=request.name,
        pair=request.pair,
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
    """The shards of one request, taken in by their order."""

    files: DatasetIntake
    request: NewDataset
    allowed: tuple[str, ...]
    resolve: Callable[[str], str]

    def training(self) -> tuple[Shards, Shards]:
        """Shards to train on, and those of the rows that a share holds out."""
        share = self.request.evaluation_share
        if share is None:
            return tuple(self._whole()), ()
        halves = list(self._split(share))
        return (
            tuple(half.training for half in halves if half.training is not None),
            tuple(half.evaluation for half in halves if half.evaluation is not None),
        )

    def evaluation(self) -> Iterator[Shard]:
        """Shards that the user held out."""
        for index, ref in enumerate(self.request.evaluation_shards):
            yield self.files.evaluation_shard(ref, self._address(ref), index)

    def _whole(self) -> Iterator[Shard]:
        for index, ref in enumerate(self.request.shards):
            yield self.files.training_shard(ref, self._address(ref), index)

    def _split(self, share: float) -> Iterator[Split]:
        """Named evaluation shards have the first numbers."""
        named = len(self.request.evaluation_shards)
        for index, ref in enumerate(self.request.shards):
            yield self.files.split_shard(ref, self._address(ref), share, (index, named + index))

    def _address(self, ref: ShardRef) -> Address:
        place = self.resolve(ref.uri)
        return Address(place, self.allowed if place == ref.uri else None)


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


def purge_training(store: ObjectStore, dataset: str) -> None:
    """Remove training rows that were written for one dataset, once nobody will learn them again."""
    for key in list(store.keys(layout.training_shards(dataset))):
        store.delete(key)


def _sides(pair: ModalityPair, spec: ModelSpec) -> tuple[Side, Side]:
    first, second = (
        Side(column, modality, spec.modalities[modality])
        for column, modality in zip(FEATURES, pair.modalities, strict=True)
    )
    return first, second


def _check_rows(shards: Shards, spec: ModelSpec, request: NewDataset) -> None:
    rows, needed = sum(shard.rows for shard in shards), spec.training.batch_size
    if rows < needed:
        left = "" if request.evaluation_share is None else " left to train on"
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
