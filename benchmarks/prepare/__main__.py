"""How fast is data prepared, compared with a bare loop of the same encoder and with pyarrow's scan?

`python -m benchmarks.prepare` prepares captions with all-MiniLM-L6-v2 and pictures with a ViT-Ti/16 on a Ray of
this machine, with one actor and with two, and files of features. It alternates with the loops that it is
compared with, so that other load on the machine affects both. It takes about ten minutes on two free cores.
"""

import argparse
import json
import operator
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from benchmarks.command_line import OneLineParser, add_out, count, counts, log_progress, publish
from benchmarks.prepare.encoding import KINDS, bare_rate, compared, medians, prepared_rate
from benchmarks.prepare.inputs import minilm, vision_transformer, write_captions, write_pictures
from benchmarks.prepare.page import markdown
from benchmarks.report import machine
from benchmarks.training.reading import write_shards
from cmcl.contract.encoder import EncoderSpec
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore
from workers.prepare.cluster import RayCluster
from workers.prepare.encoder_pool import EncoderPools
from workers.prepare.settings import PrepareSettings

# Of the bare loop; of one actor; of pyarrow's scan.
_ONE_ACTOR, _TWO_ACTORS, _FEATURES = 0.9, 1.6, 0.8
_CPUS = 8
_OBJECT_STORE_BYTES = 200_000_000
_FILES = 4
# As `cmcl up` starts Ray: by default its workers give way to all other processes.
_RAY = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


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
    page = markdown(document, (__doc__ or "").partition("\n")[0])
    publish(options.out, "prepare", page, document)
    return 0


def _document(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store: ObjectStore = LocalStore(folder / "store")
    cluster = RayCluster(EncoderPools(store.uri, 0, 600), PrepareSettings(), units_at_once=2)
    encoding: list[dict[str, Any]] = []
    for name in options.encoders:
        encoding += _encoding(options, folder, store, cluster, name)
    features = [] if options.without_features else _features(options, folder, store, cluster)
    return {
        "encoding": encoding,
        "features": features,
        "configuration": {
            "captions": options.captions,
            "pictures": options.pictures,
            "rounds": options.rounds,
            "rows of features": options.feature_rows,
            "rounds of features": options.feature_rounds,
            "niceness": "the same for encoders and bare loops",
            "Ray": f"{_CPUS} logical CPUs, {_OBJECT_STORE_BYTES // 10**6} MB for objects, two units at once",
        },
        "machine": machine(),
    }


def _encoding(
    options: argparse.Namespace, folder: Path, store: ObjectStore, cluster: RayCluster, name: str
) -> list[dict[str, Any]]:
    rows = options.captions if name == "minilm" else options.pictures
    path, raw = _written(folder, name, rows)
    runs: dict[int, list[dict[str, float]]] = {actors: [] for actors in options.actors}
    bare: dict[int, list[float]] = {actors: [] for actors in {1, *options.actors}}
    for number in range(options.rounds):
        rows_in_unit = 0
        for actors in options.actors:
            log_progress(f"{name}: round {number + 1}, {actors} actors")
            spec, dataset = _spec(folder, name, actors), f"{name}-{number}-{actors}"
            runs[actors].append(prepared_rate(store, cluster, spec, path, dataset))
            rows_in_unit = int(runs[actors][-1].pop("rows_in_unit"))
            cluster.end_idle()
        for loops, rates in bare.items():
            log_progress(f"{name}: round {number + 1}, {loops} bare loops")
            rates.append(bare_rate(_spec(folder, name, 1), raw, rows_in_unit, loops))
    return [_compared(name, actors, runs, bare) for actors in options.actors]


def _compared(
    name: str,
    actors: int,
    runs: Mapping[int, Sequence[dict[str, float]]],
    bare: Mapping[int, Sequence[float]],
) -> dict[str, Any]:
    """Return the figures of one number of actors.

    Several actors are compared with one, as they use more cores than the bare loop. `bare_ratio` is what as many
    bare loops at the same time gain on this machine.
    """
    one = [run["rows_per_second"] for run in runs[1]] if actors > 1 and 1 in runs else bare[1]
    rates = [run["rows_per_second"] for run in runs[actors]]
    return {
        "encoder": name,
        "actors": actors,
        "bare_rows_per_second": statistics.median(bare[actors]),
        "bare_ratio": statistics.median(map(operator.truediv, bare[actors], bare[1])),
        **medians(runs[actors]),
        "ratio": statistics.median(map(operator.truediv, rates, one)),
        "goal": _ONE_ACTOR if actors == 1 else _TWO_ACTORS,
    }


def _spec(folder: Path, name: str, actors: int) -> EncoderSpec:
    if name == "minilm":
        return minilm(actors)
    return vision_transformer(folder / "vit-tiny", actors)


def _written(folder: Path, name: str, rows: int) -> tuple[Path, list[str | bytes]]:
    """A file of rows, and their raw items."""
    if name == "minilm":
        path = folder / f"captions-{rows}.jsonl"
        write_captions(path, rows)
        return path, [json.loads(line)["text"] for line in path.read_text().splitlines()]
    path = folder / f"pictures-{rows}.tar"
    write_pictures(path, rows)
    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".jpg")]
        return path, [file.read() for file in files if file is not None]


def _features(
    options: argparse.Namespace, folder: Path, store: ObjectStore, cluster: RayCluster
) -> list[dict[str, Any]]:
    found = []
    for number, (kind, write) in enumerate(KINDS.items()):
        log_progress(f"files of features: {kind}")
        theirs = folder / f"features-{number}"
        theirs.mkdir()
        rows, width = options.feature_rows, options.width
        shards = write_shards(theirs, _FILES, rows // _FILES, width, write)
        runs = [
            compared(store, cluster, shards, width, f"features-{number}-{one}")
            for one in range(options.feature_rounds + 1)
        ]
        shutil.rmtree(theirs)
        mebibytes = sum(shard.bytes for shard in shards) / 2**20
        # In the first round, worker processes and their children start.
        found.append({"kind": kind, "mib": mebibytes, **medians(runs[1:]), "goal": _FEATURES})
    return found


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--captions", type=count, default=20_000)
    parser.add_argument("--pictures", type=count, default=3072)
    parser.add_argument("--rounds", type=count, default=1)
    parser.add_argument("--actors", type=counts, default=(1, 2), metavar="A,B,...")
    parser.add_argument(
        "--encoders",
        nargs="+",
        choices=("minilm", "vit-tiny"),
        default=["minilm", "vit-tiny"],
    )
    parser.add_argument("--without-features", action="store_true", help="encoders alone")
    parser.add_argument("--feature-rows", type=count, default=500_000)
    parser.add_argument("--feature-rounds", type=count, default=5)
    parser.add_argument("--width", type=count, default=512, help="of each side of the features")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
