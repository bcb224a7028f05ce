"""Is damage of any stored object noticed by all that read it?

    python -m benchmarks.damage [--bits 12] [--json]

One small store is written by the functions of the product: three versions of a model, trained in this process. Then each
object is damaged in each way, and each function that reads its kind is called. A reader must refuse by name, or return
what it returned before. Anything else is silent, and a defect.
"""

import contextlib
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel
from safetensors.torch import save

from benchmarks.command_line import OneLineParser, add_out, count, publish, table
from cmcl.contract.api.access import SNAPSHOT_TYPE, KeySnapshot
from cmcl.contract.dataset import DatasetManifest, Shard, ShardRef
from cmcl.contract.drift import DriftReport, DriftWindow, ModalityDrift, QuerySums, WrittenSum
from cmcl.contract.encoder import EncoderIdentity, EncoderRecord, EncoderSpec
from cmcl.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from cmcl.contract.job import (
    AttemptOutcome,
    AttemptRequest,
    Failure,
    JobSpec,
    Progress,
    Stage,
    StageReport,
    VersionRef,
)
from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareFailure, PrepareProgress, PrepareRequest
from cmcl.contract.version import EvaluationResult, LivePointer, VersionManifest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.local import LocalStore
from cmcl.storage.versions import (
    check_object,
    publish_manifest,
    read_blob,
    read_candidate,
    read_live,
    read_version,
    write_live,
)
from service.auth.key_snapshot import read_signed
from service.auth.signing import sign
from service.maintenance.backup import DamagedRecord, Record, decode, encode
from workers.files.shards import describe_shard, download, write_shard
from workers.prepare.encoding import EncodedItem, EncodedItems, _indexes
from workers.prepare.tasks import read_ids
from workers.prepare.units import UnitRecord
from workers.serve.collections.registry import Registry
from workers.serve.collections.searching import Searched
from workers.serve.collections.table import (
    CHECKSUMS,
    HEAD_ID,
    CollectionSpec,
    Row,
    State,
    check_features,
)
from workers.serve.versions.loading import Reservation, StoredVersions, described
from workers.train.checkpoint import StoredCheckpoints
from workers.train.distributed import SINGLE_PROCESS
from workers.train.evaluation import held_out_rows
from workers.train.job import train_dataset
from workers.train.versions import read_known, read_version_heads

SPEC = ModelSpec.model_validate(
    {"modalities": {"image": {"width": 6}, "text": {"width": 5}}, "width": 8, "policy": "improve"}
)
PAIR = ModalityPair(first="image", second="text")
MODEL, VERSIONS, ITEMS = "scenes", 3, 4
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
CLIP = EncoderIdentity(
    kind="sentence-transformers", adapter=1, model="clip", takes="image", width=4
)
PHOTOS = EncoderSpec(name="photos", kind="synthetic", takes="image", width=4)
REFUSALS = (WorkerError, DamagedRecord)
# Of documents, by the first word of their kind.
READERS = {
    **dict.fromkeys(("failure", "result", "outcome", "progress", "stages", "report"), "service"),
    "sums": "replica",
}
Read = Callable[[LocalStore, str], object]
# Readers that do not try again for a minute where a store denies access.
WITHOUT_RETRY = ("service", "replica", "service, rebuild", "service, replica", "rebuild", "cluster")


@dataclass(frozen=True)
class Kind:
    """Objects of one kind. `keys`: two of them. `readers`: by their process, what each returns for a key.

    `copy_to`: where a copy of the first would be found, if that is not the second key; empty: there is one object.
    """

    name: str
    keys: tuple[str, str]
    readers: Mapping[str, Read]
    copy_to: str | None = None


class Unreadable(LocalStore):
    """A store that denies access to one object. (Permissions of files do not bind root.)"""

    def __init__(self, root: Path, denied: str) -> None:
        super().__init__(root)
        self._denied = denied

    def _existing(self, key: str) -> Path:
        if key == self._denied:
            raise StorageUnavailable(f"{key!r}: Permission denied")
        return super()._existing(key)


def shard_of(folder: Path, name: str, seed: int) -> Path:
    """Write pairs with a common cause."""
    drawn, rows = np.random.default_rng(seed), 40
    common_NK = drawn.normal(size=(rows, 3))
    columns: dict[str, pa.Array] = {"id": pa.array([f"{name}-{row}" for row in range(rows)])}
    for column, width in (("feature_a", 6), ("feature_b", 5)):
        noise_NF = drawn.normal(size=(rows, width)) / 5
        values_NF = (common_NK @ drawn.normal(size=(3, width)) + noise_NF).astype(np.float32)
        columns[column] = pa.FixedSizeListArray.from_arrays(pa.array(values_NF.ravel()), width)
    write_shard(folder / f"{name}.parquet", pa.table(columns).to_batches())
    return folder / f"{name}.parquet"


def dataset_of(store: LocalStore, folder: Path, number: int) -> DatasetManifest:
    """Write a dataset with shards in the store."""
    dataset, shards = f"ds-{number}", []
    for at, key_of in enumerate((layout.training_shard, layout.evaluation_shard)):
        path = shard_of(folder, f"{dataset}-{at}", 10 * number + at)
        shard = describe_shard(path, path.as_uri())
        key = key_of(dataset, 0, shard.sha256)
        store.upload(path, key)
        shards.append(shard.model_copy(update={"uri": f"{store.uri}/{key}"}))
    manifest = DatasetManifest(
        dataset=dataset,
        model=MODEL,
        name=f"photos {number}",
        pair=PAIR,
        shards=(shards[0],),
        evaluation_shards=(shards[1],),
    )
    write_document(store, layout.dataset_manifest(dataset), manifest)
    return manifest


def job_of(dataset: DatasetManifest, number: int) -> JobSpec:
    return JobSpec(
        job=f"job-{number}",
        attempt=1,
        model=MODEL,
        version=number,
        parent=number - 1 or None,
        spec=SPEC,
        dataset=dataset,
    )


def items_of(store: LocalStore, owner: str) -> EncodedItems:
    return EncodedItems(store, owner, PHOTOS, CLIP)


def encoded(store: LocalStore, key: str) -> object:
    """What is found of the items; those that are not found are encoded again, and so repaired."""
    _indexes.clear()
    items = items_of(store, key.split("/")[1])
    found = items.find([bytes([seed]) * 32 for seed in range(2 * ITEMS)])
    # All features have the value of their item.
    right = {item: np.full(4, item[0], "<f4").tobytes() for item in found}
    wrong = [item for item, each in found.items() if each.feature_F.tobytes() != right[item]]
    return [item[0] for item in wrong] or "right, or encoded again"


def resumed(store: LocalStore, key: str) -> object:
    """The job of the checkpoint that an attempt resumes from; it starts over without one."""
    job = key.split("/")[1]
    spec = job_of(read_manifest("ds-1", store), 1).model_copy(update={"job": job})
    found = StoredCheckpoints(store, spec, SINGLE_PROCESS, 1.0).newest(SINGLE_PROCESS)
    own = {update: save(state_of(job, update)) for update in (1, 2)}
    is_own = found is None or save(dict(found)) in own.values()
    return "own, or started over" if is_own else "another one"


def state_of(job: str, update: int) -> dict[str, torch.Tensor]:
    return {"weights": torch.arange(16.0) * int(job[-1]) + update}


def read_manifest(dataset: str, store: LocalStore) -> DatasetManifest:
    found = read_dataset_manifest(store, dataset)
    if found is None:
        raise ObjectNotFound(layout.dataset_manifest(dataset))
    return found


def read_kind(kind: type[BaseModel], store: LocalStore, key: str) -> object:
    return read_document(store, key, kind)


def documents_of(jobs: Sequence[JobSpec]) -> dict[str, tuple[Callable[[str], str], Sequence[Any]]]:
    """Return two documents of each kind that no function of the product writes in this process, and their keys."""
    return {
        "request to prepare": (
            layout.preparation_request,
            [
                PrepareRequest(
                    dataset=f"ds-{number}",
                    request=1,
                    owner="ann",
                    model=MODEL,
                    name=f"photos {number}",
                    spec=SPEC,
                    pair=PAIR,
                    shards=(ShardRef(uri=f"file:///photos/{number}.parquet"),),
                )
                for number in (1, 2)
            ],
        ),
        "failure of a preparation": (
            lambda dataset: layout.preparation_file(dataset, "failure"),
            [
                PrepareFailure(request=1, reason="invalid_dataset", message=f"row {number} is bad")
                for number in (1, 2)
            ],
        ),
        "record of a unit": (
            lambda dataset: layout.preparation_unit(dataset, 1, "0" * 32),
            [UnitRecord(training=job.learns.shards[0], encoded=7) for job in jobs[:2]],
        ),
        "request to train": (
            layout.attempt_request,
            [
                AttemptRequest(
                    job=f"job-{number}",
                    attempt=1,
                    owner="ann",
                    ranks=1,
                    min_ranks=1,
                    gpus_per_rank=0,
                    idle_seconds=0,
                )
                for number in (1, 2)
            ],
        ),
        "outcome of an attempt": (
            layout.attempt_outcome,
            [AttemptOutcome(state="failed", message=f"rank {n} died") for n in (1, 2)],
        ),
        "spec of an attempt": (lambda name: layout.run_spec(name.replace("ds", "job"), 1), jobs),
        "failure of an attempt": (
            lambda name: layout.run_failure(name, 1),
            [Failure(reason="store_damaged", message=f"{n} is gone") for n in (1, 2)],
        ),
        "result of a measurement": (
            lambda name: layout.run_evaluation(name, 1),
            [EvaluationResult(version=n, note=f"measured {n}") for n in (1, 2)],
        ),
        "progress of a preparation": (
            lambda dataset: layout.preparation_file(dataset, "progress"),
            [PrepareProgress(request=1, phase="reading", rows_done=n, at=NOW) for n in (1, 2)],
        ),
        "stages of a preparation": (
            lambda dataset: layout.preparation_file(dataset, "stages"),
            [
                StageReport(
                    traceparent=f"00-{n}",
                    stages=(Stage(name="reading", began_at=NOW, seconds=n),),
                )
                for n in (1, 2)
            ],
        ),
        "progress of an attempt": (
            lambda name: layout.running_file(f"{name}.a1", "1"),
            [Progress(phase="training", updates_done=n, at=NOW) for n in (1, 2)],
        ),
        "sums of queries": (
            lambda name: layout.query_sums(MODEL, int(name[-1]), "replica", 1),
            [
                QuerySums(
                    model=MODEL,
                    version=1,
                    sums={"text": WrittenSum(rows=300 + n, sum=b"AACAPw==")},
                )
                for n in (1, 2)
            ],
        ),
        "report on drift": (
            layout.drift_report,
            [
                DriftReport(
                    model=MODEL,
                    modalities={
                        "text": ModalityDrift(
                            windows=(DriftWindow(at=NOW, version=n, rows=300, level=0.5),),
                            mean=(0.5,),
                        )
                    },
                )
                for n in (1, 2)
            ],
        ),
        "record of an encoder": (
            layout.encoder_record,
            [
                EncoderRecord(identity=CLIP, probe="AACAPwAAgD8AAIA/AACAPw=="[: 24 - 8 * n])
                for n in (0, 1)
            ],
        ),
    }


def kinds_with_own_digests(store: LocalStore, jobs: Sequence[JobSpec]) -> list[Kind]:
    """Write objects that are neither documents nor blobs, and return their kinds."""
    for number in (1, 2):
        name = f"model-{number}"
        rows = {"models": [{"name": name, "head": number, "owner": "ann"}]}
        record = encode(Record(rows, 7), "model", name)
        store.put(layout.model_record(name), record)
        dataset = f"ds-{number}"
        record = encode(
            Record({"datasets": [{"id": dataset, "name": name}]}, 7), "dataset", dataset
        )
        store.put(layout.dataset_record(dataset), record)
        ids = layout.preparation_ids(dataset, 1, "0" * 32)
        digests = bytes(range(16 * number, 16 * number + 32))
        store.put(ids, blake3(ids.encode() + digests).digest() + digests)
        snapshot = KeySnapshot(serial=number, issued_at=NOW, keys=())
        store.put(
            f"{layout.key_snapshot()}{number}", sign(snapshot, SNAPSHOT_TYPE, SIGNING_KEY).encode()
        )
        spec = jobs[0].model_copy(update={"job": f"job-{number}"})
        for update in (1, 2):
            with StoredCheckpoints(store, spec, SINGLE_PROCESS, 0) as checkpoints:
                checkpoints.save_if_due(update, partial(state_of, spec.job, update))
        values = range(number, number + ITEMS)
        items = {bytes([n]) * 32: EncodedItem(np.full(4, n, "<f4")) for n in values}
        items_of(store, f"owner{number}").add(items)
    newest = [[*store.keys(layout.run_checkpoints(f"job-{n}", 1))][-1] for n in (1, 2)]
    objects = [next(store.keys(f"{layout.encoded()}owner{number}/")) for number in (1, 2)]
    return [
        Kind(
            "record of a model",
            (layout.model_record("model-1"), layout.model_record("model-2")),
            {"rebuild": lambda store, key: decode(store.read(key), "model", Path(key).stem)},
        ),
        Kind(
            "record of a dataset",
            (layout.dataset_record("ds-1"), layout.dataset_record("ds-2")),
            {"rebuild": lambda store, key: decode(store.read(key), "dataset", Path(key).stem)},
        ),
        Kind(
            "ids of a file",
            (
                layout.preparation_ids("ds-1", 1, "0" * 32),
                layout.preparation_ids("ds-2", 1, "0" * 32),
            ),
            {"preparation": read_ids},
        ),
        Kind(
            "list of keys",
            (f"{layout.key_snapshot()}1", f"{layout.key_snapshot()}2"),
            {"service, rebuild": _keys},
            copy_to="",
        ),
        Kind(
            "checkpoint",
            (newest[0], newest[1]),
            {"rank": resumed},
            copy_to=newest[0].replace("job-1", "job-2"),
        ),
        Kind(
            "encoded items",
            (objects[0], objects[1]),
            {"preparation": encoded},
            copy_to=objects[0].replace("owner1", "owner2"),
        ),
        *kinds_of_collections(store),
    ]


def kinds_of_collections(store: LocalStore) -> list[Kind]:
    """Write two collections, without vectors, which have no checksums."""
    features_NF = np.random.default_rng(1).normal(size=(ITEMS, 6)).astype(np.float32)
    files: dict[str, list[str]] = defaultdict(list)
    for name in ("ours", "theirs"):
        spec = CollectionSpec(
            name=name,
            model=MODEL,
            owner=None,
            feature_type="float32",
            vector_type="float32",
            dimensions=None,
            text_fields=(),
        )
        table = Registry(store).create(spec).table
        rows = [
            Row(f"{name}-{at}", "image", feature_F, f'{{"at": {at}}}', source=f"s3://photos/{at}")
            for at, feature_F in enumerate(features_NF)
        ]
        table.write(rows, lambda *_: None)
        folder = layout.collection_table(name, table.number)
        for part in ("data", "_versions"):
            newest = max(
                (each for each in (store.root / folder / part).iterdir() if each.suffix != ".json"),
                key=lambda path: path.stat().st_mtime_ns,
            )
            files[part].append(f"{folder}/{part}/{newest.name}")

    running = Registry(store)
    known = {name: running.newest(name) for name in running.names()}

    def opened(key: str) -> State:
        name = key.split("/")[1]
        found = Registry(store).newest(name)
        running.newest(name, known[name])
        if found is None:
            raise ObjectNotFound(key)
        return found

    stored = StoredVersions(store)
    manifest = stored.manifest(MODEL, VERSIONS)
    version = described(manifest, stored.read(manifest, Reservation("ann", 1 << 20)))

    def items(_: LocalStore, key: str) -> object:
        return Searched(opened(key), version).items(0, 2 * ITEMS, include=["source"])

    def features(_: LocalStore, key: str) -> object:
        state = opened(key)
        found = state.scan(columns=["id", "feature", CHECKSUMS], filter=f"id != '{HEAD_ID}'")
        for batch in found.to_batches():
            check_features(batch, state.table.uri)
        return found.column("feature").to_pylist()

    return [
        Kind(
            f"collection: {name}",
            (files[part][0], files[part][1]),
            {"replica, items": items, "replica, features": features},
        )
        for part, name in (("data", "items and head"), ("_versions", "manifest"))
    ]


def train_versions(store: LocalStore, folder: Path) -> list[JobSpec]:
    """Train, publish and point at each version, and return the specs of their jobs."""
    jobs = []
    for number in range(1, VERSIONS + 1):
        job = job_of(dataset_of(store, folder, number), number)
        jobs.append(job)
        write_document(store, layout.run_spec(job.job, 1), job)
        train_dataset(store.uri, job.job, 1, torch.device("cpu"))
        publish_manifest(store, read_candidate(store, job.job, 1))
        for model in (MODEL, "others"):
            pointer = LivePointer(generation=number, version=number + (model == "others"))
            write_live(store, model, pointer)
    return jobs


def write_store(store: LocalStore, folder: Path) -> list[Kind]:
    """Write the store, and return its kinds with their readers."""
    jobs = train_versions(store, folder)
    two, three = (read_version(store, MODEL, number) for number in (2, 3))

    documents = documents_of(jobs)
    kinds = []
    for name, (key_of, contents) in documents.items():
        keys = [key_of(f"ds-{number}") for number in (1, 2)]
        for key, content in zip(keys, contents, strict=False):
            write_document(store, key, content)
        reader = READERS.get(name.split(" ")[0], "cluster")
        read = partial(read_kind, type(contents[0]))
        kinds.append(Kind(name, (keys[0], keys[1]), {reader: read}))
    kinds += [
        Kind(
            "candidate",
            (layout.run_candidate("job-2", 1), layout.run_candidate("job-3", 1)),
            {"service": lambda store, key: read_candidate(store, key.split("/")[1], 1)},
        ),
        Kind(
            "manifest of a version",
            (layout.version_manifest(MODEL, 2), layout.version_manifest(MODEL, 3)),
            {
                "replica": lambda store, key: StoredVersions(store).manifest(MODEL, _number(key)),
                "rank": lambda store, key: read_version_heads(store, MODEL, _number(key))[0],
                "service, rebuild": lambda store, key: read_version(store, MODEL, _number(key)),
            },
        ),
        Kind(
            "live pointer",
            (layout.live_pointer(MODEL), layout.live_pointer("others")),
            {"replica, service, rebuild": lambda store, key: read_live(store, key.split("/")[1])},
        ),
        Kind(
            "manifest of a dataset",
            (layout.dataset_manifest("ds-1"), layout.dataset_manifest("ds-2")),
            {"service, replica": lambda store, key: read_manifest(key.split("/")[1], store)},
        ),
    ]
    for name in (*two.files, "moments"):
        entries = [
            each.learned[-1].moments if name == "moments" else each.files[name]
            for each in (two, three)
        ]
        if entries[0] != entries[1]:
            one, other = (layout.blob(entry.sha256) for entry in entries)
            readers = _readers_of_blob(name, (two, three), (one, other))
            kinds.append(Kind(f"blob: {name}", (one, other), readers))
    for name, shards in (
        ("training rows", [job.learns.shards[0] for job in jobs]),
        ("held-out rows", [job.learns.evaluation_shards[0] for job in jobs]),
    ):
        by_key = {shard.uri.removeprefix(f"{store.uri}/"): shard for shard in shards}
        first, second, _ = by_key
        kinds.append(Kind(name, (first, second), _readers_of_shard(by_key)))
    kinds.append(kind_of_uploads(store, jobs))
    return [*kinds, *kinds_with_own_digests(store, jobs)]


def kind_of_uploads(store: LocalStore, jobs: Sequence[JobSpec]) -> Kind:
    """Write two uploads, whose digests the service names when they are prepared."""
    refs = {}
    for number, job in enumerate(jobs[:2]):
        shard = job.learns.shards[0]
        key = layout.upload_file(f"up-{number}", shard.sha256)
        store.put(key, store.read(shard.uri.removeprefix(f"{store.uri}/")))
        refs[key] = ShardRef(uri=f"upload:{key}", sha256=shard.sha256)

    def prepared(store: LocalStore, key: str) -> object:
        with TemporaryDirectory() as folder:
            return download(refs[key], f"{store.uri}/{key}", Path(folder) / "rows")

    first, second = refs
    return Kind("upload", (first, second), {"preparation": prepared})


def _keys(store: LocalStore, key: str) -> object:
    found = read_signed(store.read(key), SIGNING_KEY)
    if found is None:
        raise WorkerError(f"{key} was not signed with this key")
    return found


def _number(key: str) -> int:
    found = layout.version_of(key)
    assert found is not None
    return found[1]


def _readers_of_blob(
    name: str, versions: Sequence[VersionManifest], keys: Sequence[str]
) -> dict[str, Read]:
    def manifest(key: str) -> VersionManifest:
        return versions[keys.index(key)]

    def entry(key: str) -> FileEntry:
        found = manifest(key)
        return found.learned[-1].moments if name == "moments" else found.files[name]

    def rank(store: LocalStore, key: str) -> object:
        ref = VersionRef(model=MODEL, version=manifest(key).version)
        state = read_known(store, ref, SPEC).model_state
        return {each: weight.tolist() for each, weight in state.heads.weights.items()}

    def replica(store: LocalStore, key: str) -> object:
        stored = StoredVersions(store)
        loaded = stored.read(manifest(key), Reservation("ann", 1 << 20))
        stored.check(manifest(key), loaded)
        return {each: weight.tolist() for each, weight in loaded.heads.weights.items()}

    readers: dict[str, Read] = {
        "rank, export": lambda store, key: read_blob(store, entry(key)),
        "rebuild": lambda store, key: check_object(store, key, entry(key)),
    }
    if name in (*layout.HEADS_FILES, layout.SELFTEST):
        readers["replica"] = replica
    if name in (*layout.HEADS_FILES, layout.MEMORY) or layout.pair_of(name):
        readers["rank"] = rank
    return readers


def _readers_of_shard(shards: Mapping[str, Shard]) -> dict[str, Read]:
    def here(store: LocalStore, key: str) -> Shard:
        return shards[key].model_copy(update={"uri": f"{store.uri}/{key}"})

    def copy(store: LocalStore, key: str) -> object:
        with TemporaryDirectory() as folder:
            return download(here(store, key), f"{store.uri}/{key}", Path(folder) / "rows")

    def rows(store: LocalStore, key: str) -> object:
        found = held_out_rows([here(store, key)])
        assert found is not None
        return found.rows.first_NI.tolist()

    return {"preparation": copy, "rank, replica": rows}


# --- Damage ------------------------------------------------------------------------------------


def damages(store: LocalStore, kind: Kind, bits: int) -> Iterator[tuple[str, str, bool]]:
    """Damage the object, in each way in turn: yield the way, the key to read, and whether it is unreadable."""
    key, sibling = kind.keys
    whole, other, drawn = store.read(key), store.read(sibling), random.Random(kind.name)  # noqa: S311
    places = [0, len(whole) // 2, len(whole) - 1]
    places += [drawn.randrange(len(whole)) for _ in range(bits - len(places))]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << drawn.randrange(8)
        store.put(key, bytes(changed))
        yield "one bit", key, False
    for size in (len(whole) - 1, len(whole) // 2):
        store.put(key, whole[:size])
        yield "truncated", key, False
    store.put(key, b"")
    yield "empty", key, False
    if kind.copy_to != "":
        store.put(key, other)
        yield "swapped", key, False
    store.delete(key)
    yield "deleted", key, False
    store.put(key, whole)
    yield "unreadable", key, True
    if kind.copy_to != "":
        copy_to = kind.copy_to or sibling
        store.put(copy_to, whole)
        yield "copied over another", copy_to, False
        store.delete(copy_to)
        store.put(sibling, other)


def outcome(read: Read, store: LocalStore, key: str, expected: object) -> str:
    """Return what a reader does with the damage."""
    try:
        found = read(store, key)
    except REFUSALS as error:
        # Errors of a collection name its table, not the file.
        names = (key, Path(key).name, key.rpartition(".lance/")[0] or key)
        named = any(name in str(error) for name in names)
        return "refused" if named or isinstance(error, DamagedRecord) else "refused, not by name"
    except Exception as error:  # noqa: BLE001 - that is what is counted
        return f"{type(error).__name__}"
    if found is None:
        return "absent"
    return "unharmed" if found == expected else "silent"


def run(bits: int) -> tuple[dict[tuple[str, str], dict[str, Counter[str]]], Counter[str]]:
    """Return outcomes by kind and reader and way of damage, and their total."""
    found: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    total: Counter[str] = Counter()
    with TemporaryDirectory(prefix="cmcl-damage-") as folder:
        store = LocalStore(Path(folder) / "store")
        for kind in write_store(store, Path(folder)):
            expected = {
                (name, key): read(store, key)
                for name, read in kind.readers.items()
                for key in kind.keys
            }
            for way, key, is_unreadable in damages(store, kind, bits):
                for name, read in kind.readers.items():
                    if is_unreadable and name not in WITHOUT_RETRY:
                        continue
                    here = Unreadable(store.root, key) if is_unreadable else store
                    right = expected.get((name, key), expected[name, kind.keys[1]])
                    result = outcome(read, here, key, right)
                    ways = found.setdefault((kind.name, name), defaultdict(Counter))
                    ways[way][result] += 1
                    total[result] += 1
    return found, total


WAYS = ("one bit", "truncated", "empty", "swapped", "deleted", "unreadable", "copied over another")


def page(found: Mapping[tuple[str, str], Mapping[str, Counter[str]]]) -> str:
    """Return the table: object, reader, and the outcomes of each way."""
    rows = [
        (*key, *(", ".join(sorted(ways[way])) if way in ways else "" for way in WAYS))
        for key, ways in found.items()
    ]
    return table(("object", "read by", *WAYS), rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if damage was not noticed, or not refused by name."""
    parser = OneLineParser(prog="python -m benchmarks.damage", description=__doc__)
    parser.add_argument("--bits", type=count, default=12, help="flipped bits for each object (12)")
    add_out(parser)
    options = parser.parse_args(arguments)
    with contextlib.redirect_stdout(sys.stderr):
        found, total = run(options.bits)
    good = sum(total[name] for name in ("refused", "unharmed", "absent"))
    document = {
        "cases": total.total(),
        "refused_or_repaired": good,
        "silent": total["silent"],
        "outcomes": dict(total),
    }
    publish(options, "damage", page(found), document)
    return 0 if good == total.total() else 1


if __name__ == "__main__":
    sys.exit(main())
