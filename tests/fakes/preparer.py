"""A process that prepares datasets, without a cluster: it carries out the requests in the store at once.

It reads Parquet in the internal form, holds out rows by their position, and checks only that a file can be read and that its numbers are finite. The real
checks have tests of their own.
"""

from collections.abc import Callable, Mapping, Sized
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import InvalidDataset, ObjectExists, ObjectNotFound
from cmcl.contract.prepare import (
    DatasetReport,
    PrepareFailure,
    PrepareProgress,
    PrepareReport,
    PrepareRequest,
)
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.tracing import StageLog
from workers.files.shards import describe_shard, verified_digests
from workers.prepare.dataset import as_failure


def prepare_all(store: ObjectStore) -> None:
    """Carry out every request that is in the store."""
    for request in requests_in(store):
        prepare(store, request)


def requests_in(store: ObjectStore) -> list[PrepareRequest]:
    """The requests that are in the store."""
    keys = list(store.keys(layout.preparations()))
    return [read_document(store, key, PrepareRequest) for key in keys]


def prepare(store: ObjectStore, request: PrepareRequest) -> None:
    """Write the manifest of the dataset, the report of a dry run, or why neither is possible."""
    stages = StageLog(request.traceparent)
    stages.enter("planning")
    try:
        manifest = _manifest(store, request)
    except InvalidDataset as error:
        fail(store, request, "invalid_dataset", str(as_failure(error, request)))
        return
    stages.write(store, layout.preparation_file(request.dataset, "stages"))
    if request.report_version is not None:
        report_on(store, request, manifest.rows)
        return
    write_manifest(store, manifest)


def write_manifest(store: ObjectStore, manifest: DatasetManifest) -> None:
    """Write it, unless there is one."""
    try:
        key = layout.dataset_manifest(manifest.dataset)
        store.create(key, manifest.model_dump_json().encode())
    except ObjectExists:
        # Another process was faster.
        pass


def report_on(store: ObjectStore, request: PrepareRequest, rows: int, **changes: object) -> None:
    """Write the report of a dry run."""
    report = DatasetReport(
        version=request.report_version or 0,
        pair=request.pair.modalities,
        rows=rows,
        refusals=(),
        findings={},
        advice=("text: nothing is odd",),
    ).model_copy(update=changes)
    written = PrepareReport(request=request.request, report=report)
    key = layout.preparation_file(request.dataset, "report")
    store.put(key, written.model_dump_json().encode())


def fail(
    store: ObjectStore, request: PrepareRequest, reason: str, message: str, **changes: object
) -> None:
    """Write why the dataset cannot be prepared."""
    known = changes.get("rejected", ())
    counted = {"rejected_rows": len(known) if isinstance(known, Sized) else 0}
    values = {
        "request": request.request,
        "reason": reason,
        "message": message,
        **counted,
        **changes,
    }
    failure = PrepareFailure.model_validate(values)
    key = layout.preparation_file(request.dataset, "failure")
    store.put(key, failure.model_dump_json().encode())


def report_progress(
    store: ObjectStore, request: PrepareRequest, phase: str, **figures: object
) -> PrepareProgress:
    """Overwrite the progress."""
    values = {"request": request.request, "phase": phase, "at": datetime.now(UTC), **figures}
    progress = PrepareProgress.model_validate(values)
    key = layout.preparation_file(request.dataset, "progress")
    store.put(key, progress.model_dump_json().encode())
    return progress


def identity(model: str = "clip", width: int = 4, **settings: object) -> EncoderIdentity:
    """The identity of an encoder of images."""
    return EncoderIdentity.model_validate(
        {
            "kind": "sentence-transformers",
            "adapter": 1,
            "model": model,
            "takes": "image",
            "width": width,
            "settings": settings,
        }
    )


def _manifest(
    store: ObjectStore,
    request: PrepareRequest,
    encoders: Mapping[str, EncoderIdentity] | None = None,
) -> DatasetManifest:
    held = [
        _stored(store, layout.evaluation_shard, request.dataset, index, _checked(request, ref)[0])
        for index, ref in enumerate(request.evaluation_shards)
    ]
    training = [_checked(request, ref) for ref in request.shards]
    shards = [shard for _, shard in training]
    if request.evaluate_only:
        held = [
            _stored(store, layout.evaluation_shard, request.dataset, index, path)
            for index, (path, _) in enumerate(training)
        ]
        shards = []
    if request.evaluation_share is not None:
        shards = []
        for index, (path, _) in enumerate(training):
            kept, out = _split(store, request, path, index)
            shards.append(kept)
            held.append(out)
    return DatasetManifest(
        dataset=request.dataset,
        model=request.model,
        name=request.name,
        pair=request.pair,
        shards=tuple(shards),
        evaluation_shards=tuple(held),
        evaluate_only=request.evaluate_only,
        encoders=dict(encoders or request.declared),
    )


def manifest_of(
    store: ObjectStore, request: PrepareRequest, **encoders: EncoderIdentity
) -> DatasetManifest:
    """The manifest that the request leads to, with rows of these encoders."""
    return _manifest(store, request, encoders)


def _checked(request: PrepareRequest, ref: ShardRef) -> tuple[Path, Shard]:
    address = request.locations.get(ref.uri, ref.uri)
    path = Path(unquote(urlsplit(address).path))
    if not path.exists():
        raise InvalidDataset(f"{ref.uri}: there is no such object")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InvalidDataset(f"{ref.uri}: it cannot be read as Parquet") from error
    for column in ("feature_a", "feature_b"):
        if column not in table.column_names:
            raise InvalidDataset(f"{ref.uri}: column {column!r} is missing")
        if not np.isfinite(_numbers(table.column(column).combine_chunks())).all():
            raise InvalidDataset(f"{ref.uri}: column {column!r} has NaN or infinity")
    return path, describe_shard(path, address, verified_digests(ref, path))


def _numbers(column: pa.Array) -> np.ndarray:
    return np.asarray(column.flatten(), dtype=np.float64)


def _split(
    store: ObjectStore, request: PrepareRequest, path: Path, index: int
) -> tuple[Shard, Shard]:
    """Rows to train on, and rows that are held out, each in a shard of our own."""
    table = pq.read_table(path)
    every = round(1 / (request.evaluation_share or 1))
    is_held = pa.array([row % every == 0 for row in range(len(table))])
    first = len(request.evaluation_shards)
    with TemporaryDirectory() as folder:
        kept, out = Path(folder) / "kept", Path(folder) / "out"
        pq.write_table(table.filter(pc.invert(is_held)), kept)
        pq.write_table(table.filter(is_held), out)
        return (
            _stored(store, layout.training_shard, request.dataset, index, kept),
            _stored(store, layout.evaluation_shard, request.dataset, first + index, out),
        )


def _stored(
    store: ObjectStore, key_of: Callable[[str, int, str], str], dataset: str, index: int, path: Path
) -> Shard:
    shard = describe_shard(path, path.as_uri())
    key = key_of(dataset, index, shard.sha256)
    store.upload(path, key)
    return shard.model_copy(update={"uri": f"{store.uri}/{key}"})


def is_asked(store: ObjectStore, dataset: str) -> bool:
    """Whether there is a request for the dataset."""
    try:
        store.size(layout.preparation_request(dataset))
    except ObjectNotFound:
        return False
    return True
