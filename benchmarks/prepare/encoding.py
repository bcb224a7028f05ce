"""Preparation through the pipeline, compared with the same work in a bare loop.

Raw items are compared with the same encoder over the same decoded batches, files of features with pyarrow's scan.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.processes import family, title
from benchmarks.training.reading import Write
from cmcl.contract.dataset import Shard, ShardRef
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PreparationPhase, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from workers.encoders.decoding import decode
from workers.encoders.media import Decoded, Limits
from workers.encoders.registry import load_encoder
from workers.files.shards import write_shard
from workers.prepare.cluster import RayCluster
from workers.prepare.dataset import Preparation, prepare_dataset
from workers.prepare.encoding import Encoded, SideEncoder
from workers.prepare.progress import DatasetProgress

_DEPTH = 3


@dataclass
class _Batches:
    """An encoder that stores its batches."""

    width: int
    batches: list[list[Decoded]] = field(default_factory=list)

    def submit(self, items: Sequence[Decoded]) -> Any:
        """See EncoderPort."""
        self.batches.append(list(items))
        return Encoded(np.ones((len(items), self.width), np.float32))

    def wait(self, pending: Any) -> Encoded:
        """See EncoderPort."""
        found: Encoded = pending
        return found


def bare_rate(
    spec: EncoderSpec, raw: Sequence[str | bytes], rows_in_unit: int, processes: int = 1
) -> float:
    """Return items a second of a loop that loads and encodes one batch after another.

    `processes`: loops at the same time, each over its part of the items, in processes of their own.
    """
    context = multiprocessing.get_context("spawn")
    bounds = [len(raw) * number // processes for number in range(processes + 1)]
    with ProcessPoolExecutor(
        processes, context, initializer=_start_together, initargs=(context.Barrier(processes),)
    ) as executor:
        loops = [
            executor.submit(_bare, spec, list(raw[start:stop]), rows_in_unit)
            for start, stop in pairwise(bounds)
        ]
        return sum(loop.result() for loop in loops)


def _start_together(barrier: Barrier) -> None:
    """Keep the barrier that the loops of several processes wait at."""
    _LOADED.append(barrier)


_LOADED: list[Barrier] = []


def _bare(spec: EncoderSpec, raw: list[str | bytes], rows_in_unit: int) -> float:
    limits, collected = Limits.from_spec(spec), _Batches(spec.width)
    for first in range(0, len(raw), rows_in_unit):
        side = SideEncoder(collected, spec, {})
        for row, item in enumerate(raw[first : first + rows_in_unit]):
            side.add(row.to_bytes(4, "big"), decode(spec.takes, item, limits))
        list(side.finish())
    encoder = load_encoder(spec)
    encoder.features([encoder.load(item) for item in collected.batches[0]])
    _LOADED[0].wait()
    began = time.perf_counter()
    for batch in collected.batches:
        encoder.features([encoder.load(item) for item in batch])
    return len(raw) / (time.perf_counter() - began)


def check_niceness(name: str) -> None:
    """Raise RuntimeError unless Ray's workers of this name have the niceness of this process.

    By default they give way to all other processes.
    """
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    workers = [each for each in family(os.getpid()) if name in title(each)]
    others = {each.nice() for each in workers} - {ours}
    if others or not workers:
        raise RuntimeError(
            f"{len(workers)} processes {name!r} have a niceness of {others}, this process {ours}"
        )


class _Phases(DatasetProgress):
    """Notes when each phase began."""

    def __init__(self, dataset: str) -> None:
        super().__init__(dataset, 0)
        self.began: dict[str, float] = {}

    def enter(self, phase: PreparationPhase, rows: int = 0, units: int = 0) -> None:
        """See DatasetProgress."""
        self.began[phase] = time.perf_counter()
        super().enter(phase, rows, units)


def prepared_rate(
    store: ObjectStore, cluster: RayCluster, spec: EncoderSpec, path: Path, dataset: str
) -> dict[str, float]:
    """Rows a second of the phase that encodes, and from the request to the manifest.

    The encoder is loaded before, as it is for the second dataset of a driver.
    """
    modality = "text" if spec.takes == "text" else "image"
    request = PrepareRequest(
        dataset=dataset,
        request=0,
        owner=dataset,
        model="bench",
        name=dataset,
        spec=ModelSpec.model_validate(
            {
                "width": 8,
                "modalities": {
                    modality: {"width": spec.width, "encoder": spec.name},
                    "depth": _DEPTH,
                },
                "training": {"batch_size": 8},
            }
        ),
        pair=ModalityPair(first=modality, second="depth"),
        shards=({"uri": path.as_uri()},),
        encoders={modality: spec},
        allowed_prefixes=(path.parent.as_uri(),),
    )
    store.put(layout.preparation_request(dataset), request.model_dump_json().encode())
    progress = _Phases(dataset)
    with ExitStack() as leases:
        leases.enter_context(cluster.lease(spec, spec.actors, lambda _: None))
        check_niceness("EncoderProcess")
        began = time.perf_counter()
        prepare_dataset(Preparation(store, request, cluster, progress))
        ended = time.perf_counter()
    rows, manifest = progress.rows.done, read_dataset_manifest(store, dataset)
    assert manifest is not None
    return {
        "rows_in_unit": manifest.shards[0].rows,
        "rows_per_second": rows / (progress.began["finishing"] - progress.began["encoding"]),
        "rows_per_second_overall": rows / (ended - began),
    }


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def with_defaults(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a table of features with pyarrow's defaults: dictionaries, Snappy, and numbers that may be missing."""
    pq.write_table(pa.Table.from_batches(list(batches)), path)


KINDS: dict[str, Write] = {
    "the internal form": write_shard,
    "pyarrow's defaults": with_defaults,
}


def compared(
    store: ObjectStore, cluster: RayCluster, shards: Sequence[Shard], width: int, name: str
) -> dict[str, float]:
    """MiB a second of both, one after the other, from the page cache. Both decode every column."""
    mebibytes = sum(shard.bytes for shard in shards) / 2**20
    files = [shard.uri.removeprefix("file://") for shard in shards]
    began = time.perf_counter()
    rows = sum(batch.num_rows for batch in ds.dataset(files, format="parquet").to_batches())
    scanned = time.perf_counter() - began
    request = PrepareRequest(
        dataset=name,
        request=0,
        owner="bench",
        model="bench",
        name=name,
        spec=ModelSpec.model_validate({"width": 8, "modalities": {"a": width, "b": width}}),
        pair=ModalityPair(first="a", second="b"),
        shards=tuple(ShardRef(uri=shard.uri) for shard in shards),
        allowed_prefixes=(shards[0].uri.rpartition("/")[0],),
    )
    store.put(layout.preparation_request(name), request.model_dump_json().encode())
    progress = DatasetProgress(name, 0)
    began = time.perf_counter()
    prepare_dataset(Preparation(store, request, cluster, progress))
    prepared = time.perf_counter() - began
    check_niceness("ray::")
    if progress.rows.done != rows:
        raise RuntimeError(f"{progress.rows.done} rows were prepared, and {rows} scanned")
    return {
        "prepared_mib_per_second": mebibytes / prepared,
        "pyarrow_mib_per_second": mebibytes / scanned,
        "ratio": scanned / prepared,
    }
