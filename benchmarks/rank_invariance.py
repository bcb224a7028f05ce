"""Is the result independent of the number of ranks, and how many bytes does an update send?

`python -m benchmarks.rank_invariance` learns two datasets of examples/stream with 1, 2, 3 and 4 ranks
(real processes, connected by gloo), with rows held in memory and streamed from shards, and compares
all with one rank. Bytes are compared with the formula of decision 15, and with the kernel's
counters of a private loopback interface.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import OneLineParser, count, counts
from benchmarks.folder import read_stream
from benchmarks.ranks.job import Job, Part, make_parent
from benchmarks.ranks.page import markdown
from benchmarks.ranks.wire import enter_own_network
from benchmarks.report import machine
from benchmarks.scaling.group import in_group
from cmcl.contract.dataset import Shard
from cmcl.contract.model import ModelSpec, ProtectionSpec, TrainingSpec
from workers.storage.shards import describe_shard
from workers.train.data.rows import HeldRows

_RESULTS, _STREAM = Path(".cmcl/benchmarks"), Path("examples/stream")
_WAYS = ("held", "streamed")
# High, so that the mask blocks a considerable share of the entries.
_KEPT_ENERGY = 0.9999


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    is_counted = enter_own_network()
    with tempfile.TemporaryDirectory(prefix="cmcl-ranks-") as folder:
        result = _compared(options, Path(folder))
    answer = {
        "machine": machine(),
        "configuration": {
            "stream": str(options.stream),
            "ranks": list(options.ranks),
            "width": options.width,
            "batch_size": options.batch,
            "epochs": options.epochs,
            "kept_energy": _KEPT_ENERGY,
            "counted_by_the_kernel": is_counted,
        },
        "result": result,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ranks.json").write_text(json.dumps(answer, indent=1) + "\n")
    (options.out / "ranks.md").write_text(markdown(answer))
    print(markdown(answer))
    print(json.dumps(answer))
    return 0


def _compared(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one entry for each kind of rows and number of ranks, compared with one rank.

    Streamed rows have a different order, so they are compared with one rank that streams.
    """
    found = []
    for way in _WAYS:
        job = _job(options, way, folder)
        alone = in_group(job, 1)[0]
        for size in options.ranks:
            ranks = in_group(job, size)
            found.append({"rows": way, "ranks": size, **_gaps(ranks, alone), **_bytes(ranks)})
            print(json.dumps(found[-1]), flush=True)
    return found


def _gaps(ranks: Sequence[Mapping[str, Any]], alone: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest differences of any rank from one rank; moments relative to their largest
    entry."""
    return {
        "heads": max(
            _gap(rank["heads"][name], head)
            for rank in ranks
            for name, head in alone["heads"].items()
        ),
        "losses": max(_gap(rank["losses"], alone["losses"]) for rank in ranks),
        "certificate": max(abs(rank["certificate"] - alone["certificate"]) for rank in ranks),
        "moments": max(
            _gap(ours, theirs) / float(theirs.abs().max())
            for rank in ranks
            for ours, theirs in zip(rank["moments"], alone["moments"], strict=True)
        ),
    }


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _bytes(ranks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return bytes per update: sent by the busiest rank, counted and by the formula; and of all
    ranks on the wire."""
    size, told = len(ranks), [rank["traffic"] for rank in ranks]
    of, counted = told[0], told[0]["updates"] - 1
    if size == 1:
        return {}
    own = 2 * of["width"] * 4 + 2 * 8 + 3 * 4
    # Every second update, including the first one, which is not counted.
    sampled = (of["sides_replayed"] * of["width"] * 4 + 3 * 4) * (counted // 2) / counted
    gathered = -(-of["batch"] // size) * (own + sampled)
    reduced = of["free"] * 4
    return {
        "free_share": of["free"] / of["entries"],
        "given": max(each["given"] for each in told) / counted,
        "formula": gathered + reduced,
        "wire": of["wire"] / counted,
        # Each rank's rows go to all others; a ring all-reduce sends 2 (N − 1) / N of the payload.
        "wire_formula": size * (size - 1) * gathered + 2 * (size - 1) * reduced,
    }


def _job(options: argparse.Namespace, way: str, folder: Path) -> Job:
    stream = read_stream(options.stream)
    spec = ModelSpec(
        width=options.width,
        modalities=stream.widths,
        protection=ProtectionSpec(kept_energy=_KEPT_ENERGY),
        training=TrainingSpec(epochs=options.epochs, batch_size=options.batch),
    )
    first, second = (
        Part(
            one.pair,
            (_shard(options.stream / f"{one.name}.train.parquet"),),
            HeldRows(one.training),
        )
        for one in stream.datasets[:2]
    )
    parent = folder / "parent.pt"
    if not parent.exists():
        make_parent(spec, first, parent)
    return Job(spec, second, way, parent)


def _shard(path: Path) -> Shard:
    return describe_shard(path, path.resolve().as_uri())


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m benchmarks.rank_invariance", description=__doc__)
    parser.add_argument("--stream", type=Path, default=_STREAM)
    parser.add_argument("--ranks", type=counts, default=(1, 2, 3, 4))
    parser.add_argument("--width", type=count, default=256, help="of the embeddings")
    parser.add_argument("--batch", type=count, default=130, help="not a multiple of 3 or 4")
    parser.add_argument("--epochs", type=count, default=5)
    parser.add_argument("--out", type=Path, default=_RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
