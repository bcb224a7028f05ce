"""Reading every shard of a dataset before anything is trained on it."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from tempfile import TemporaryDirectory

from service.control.intake import NewDataset
from service.database.rows import DatasetRecord
from workers.contract.dataset import DatasetManifest, Shard, ShardRef
from workers.contract.errors import InvalidDataset, InvalidVersion, ObjectNotFound
from workers.contract.model import ModelSpec
from workers.storage import layout
from workers.storage.port import ObjectStore
from workers.storage.shards import ShardChecker, fetch


class Validations:
    """Runs validations beside the reconciler: reading one dataset must not hold up other models.

    Nothing is lost with it: a control plane that starts anew simply validates again.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._running: dict[str, Future[DatasetManifest]] = {}

    def outcome(self, dataset: str, work: Callable[[], DatasetManifest]) -> DatasetManifest | None:
        """What `work` answered or raised; None while it is still at it. Asking starts it."""
        future = self._running.get(dataset)
        if future is None:
            future = self._running[dataset] = self._executor.submit(work)
        if not future.done():
            return None
        del self._running[dataset]
        return future.result()

    def forget(self, dataset: str) -> None:
        """Nobody waits for it any more."""
        future = self._running.pop(dataset, None)
        if future is not None:
            future.cancel()

    def close(self) -> None:
        """Start nothing any more, and do not wait for what runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def verify(store: ObjectStore, dataset: DatasetRecord, spec: ModelSpec) -> DatasetManifest:
    """Check all shards, copy the held-out ones into our store, write the manifest last.

    Raises InvalidDataset, InvalidUri, StorageUnavailable.
    """
    request = NewDataset.model_validate(dataset.request)
    checker = _checker(request, spec)
    with TemporaryDirectory(prefix="cmcl-validate-") as folder:
        path = Path(folder) / "shard.parquet"
        shards = [_checked(ref, checker, path) for ref in request.shards]
        _check_rows(shards, spec)
        evaluation_shards = [
            _copied(_checked(ref, checker, path), path, store, dataset.id, index)
            for index, ref in enumerate(request.evaluation_shards)
        ]
    manifest = DatasetManifest(
        dataset=dataset.id,
        model=request.model,
        name=request.name,
        pair=request.pair,
        shards=tuple(shards),
        evaluation_shards=tuple(evaluation_shards),
    )
    store.put(layout.dataset_manifest(dataset.id), manifest.model_dump_json().encode())
    return manifest


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


def purge(store: ObjectStore, dataset: str) -> None:
    """Remove what a dataset left in our store; the user's own shards are not ours to touch."""
    for key in list(store.keys(f"datasets/{dataset}/")):
        store.delete(key)


def _checker(request: NewDataset, spec: ModelSpec) -> ShardChecker:
    """One for all shards: a held-out row that is trained on as well would measure nothing."""
    pair = request.pair
    return ShardChecker((spec.modalities[pair.first], spec.modalities[pair.second]))


def _checked(ref: ShardRef, checker: ShardChecker, path: Path) -> Shard:
    shard = fetch(ref, path)
    checker.check(path, ref.uri)
    return shard


def _check_rows(shards: list[Shard], spec: ModelSpec) -> None:
    rows, needed = sum(shard.rows for shard in shards), spec.training.batch_size
    if rows < needed:
        raise InvalidDataset(
            f"the training shards have {rows} rows together; "
            f"one batch takes {needed} (training.batch_size), so at least that many are needed"
        )


def _copied(shard: Shard, path: Path, store: ObjectStore, dataset: str, index: int) -> Shard:
    key = layout.evaluation_shard(dataset, index)
    store.upload(path, key)
    return shard.model_copy(update={"uri": f"{store.uri}/{key}"})
