"""Can a dataset larger than memory be learned, and at what cost?

`python -m benchmarks.large_dataset` writes pairs of float16 features to the disk, learns them with
several ranks, each in a control group with a memory limit, and samples the memory of each.
It runs the training job's main path (workers/train/job.py) from spec to candidate. Needs root for
the control groups, and disk space for twice the dataset.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, add_out, count, publish
from benchmarks.first_version import publish_first
from benchmarks.large.data import write_dataset
from benchmarks.report import machine
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.job import JobSpec, submission_id
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from cmcl.storage.running import Shown, read_running
from cmcl.storage.versions import read_candidate

_CONTROLLER = Path("/sys/fs/cgroup/memory")

_LIMIT = (
    "The kernel enforces the limit with a control group for each rank. It includes the page cache "
    "that a rank fills, which is reclaimed near the limit; *own* is memory that cannot be "
    "reclaimed.\n"
)


@dataclass(frozen=True)
class Memory:
    """Bytes of private memory, of page cache, and the peak of their sum."""

    own: int
    cache: int
    most: int


class Limit:
    """One control group. Raises OSError if it cannot be created; needs root and cgroup version
    1."""

    def __init__(self, name: str, limit: int) -> None:
        self._folder = _CONTROLLER / name
        self._folder.mkdir()
        (self._folder / "memory.limit_in_bytes").write_text(str(limit))

    def join(self) -> None:
        """Add the calling process; to be called before it allocates memory."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def memory(self) -> Memory:
        """Now."""
        lines = (self._folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        most = int((self._folder / "memory.max_usage_in_bytes").read_text())
        return Memory(stat["total_rss"], stat["total_cache"], most)

    def remove(self) -> None:
        """Remove the group, after its process has ended."""
        self._folder.rmdir()


@contextmanager
def limits(count: int, limit: int) -> Iterator[list[Limit]]:
    """Create control groups, and remove them at the end."""
    made = [Limit(f"cmcl-large-{os.getpid()}-{number}", limit) for number in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.remove()


JOB, PAIR = "large", ModalityPair(first="image", second="text")
_SECONDS_BETWEEN_LOOKS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and write page and document."""
    options = _parser().parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="large-") as folder:
        began = time.monotonic()
        shards = write_dataset(Path(folder) / "shards", options.rows, options.width, options.shards)
        made = time.monotonic() - began
        answer = _learned(Path(folder), shards, options)
    answer["configuration"]["seconds_to_make_the_dataset"] = round(made, 1)
    publish(options, "large-dataset", markdown(answer), answer)
    return 0


def _learned(folder: Path, shards: list[Shard], options: argparse.Namespace) -> dict[str, Any]:
    store = LocalStore(folder / "store")
    spec = _spec(shards, options)
    # The pair is trained on rows if it was learned before; the first dataset is solved.
    first = spec.learns.model_copy(update={"dataset": "first", "shards": tuple(shards[:1])})
    publish_first(store, spec.spec, first)
    store.put(layout.run_spec(JOB, 1), spec.model_dump_json().encode())
    began = time.monotonic()
    with limits(options.ranks, options.limit_mib << 20) as groups:
        ranks = [
            _start(store, folder, number, options.ranks, group)
            for number, group in enumerate(groups)
        ]
        samples = _watched(ranks, groups, store, began)
        most = [group.memory().most for group in groups]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"ranks ended with {[rank.returncode for rank in ranks]}")
    report = read_candidate(store, JOB, 1).report
    return {
        "machine": machine(),
        "configuration": {
            "rows": options.rows,
            "width": options.width,
            "bytes_of_features": options.rows * options.width * 2 * 2,
            "shards": options.shards,
            "ranks": options.ranks,
            "limit_mib_each": options.limit_mib,
            "embedding_width": options.embedding_width,
            "batch_size": options.batch,
            "epochs": options.epochs,
        },
        "result": {
            "seconds": round(time.monotonic() - began, 1),
            "seconds_of_phases": report.seconds,
            "updates": report.updates,
            "final_loss": report.final_loss,
            "most_own_mib": [
                round(max(sample["own"][rank] for sample in samples) / 2**20)
                for rank in range(options.ranks)
            ],
            "most_with_page_cache_mib": [round(each / 2**20) for each in most],
        },
        "samples": samples,
    }


def _start(
    store: LocalStore, folder: Path, rank: int, size: int, group: Limit
) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "benchmarks.large.rank"),
        *("--store", store.uri, "--job", JOB, "--meeting", str(folder / "meeting")),
        *("--rank", str(rank), "--size", str(size)),
    ]
    # Joins its control group first, so that all of its memory is counted.
    return subprocess.Popen(command, preexec_fn=group.join, env=_environment(folder))  # noqa: PLW1509


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}


def _watched(
    ranks: Sequence[subprocess.Popen[bytes]],
    groups: Sequence[Limit],
    store: LocalStore,
    began: float,
) -> list[dict[str, Any]]:
    """Take a sample each second until all ranks have ended. If one fails, stop the others."""
    samples = []
    while any(rank.poll() is None for rank in ranks):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        memories = [group.memory() for group in groups]
        samples.append(
            {
                "second": round(time.monotonic() - began, 1),
                "own": [memory.own for memory in memories],
                "cache": [memory.cache for memory in memories],
                **_told(store),
            }
        )
        if any(rank.poll() for rank in ranks):
            for rank in ranks:
                rank.kill()
    return samples


def _told(store: LocalStore) -> dict[str, Any]:
    progress = read_running(store).get(submission_id(JOB, 1), Shown()).progress()
    if progress is None:
        return {"phase": "starting", "rows_per_second": None}
    return {"phase": progress.phase, "rows_per_second": progress.rows_per_second}


def _spec(shards: list[Shard], options: argparse.Namespace) -> JobSpec:
    training = TrainingSpec(epochs=options.epochs, batch_size=options.batch)
    modalities = dict.fromkeys(PAIR.modalities, options.width)
    return JobSpec(
        job=JOB,
        attempt=1,
        model="large",
        version=2,
        parent=1,
        spec=ModelSpec(
            width=options.embedding_width,
            modalities=modalities,
            training=training,
            policy="preserve",
        ),
        dataset=DatasetManifest(
            dataset="large", model="large", name="large", pair=PAIR, shards=tuple(shards)
        ),
    )


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m benchmarks.large_dataset", description=__doc__)
    parser.add_argument("--rows", type=count, default=4_000_000)
    parser.add_argument("--width", type=count, default=1024, help="width of each feature")
    parser.add_argument("--shards", type=count, default=16)
    parser.add_argument("--ranks", type=count, default=2)
    parser.add_argument("--limit-mib", type=count, default=3072, help="memory limit of each rank")
    parser.add_argument("--embedding-width", type=count, default=128)
    parser.add_argument("--batch", type=count, default=4096)
    parser.add_argument("--epochs", type=count, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    add_out(parser)
    return parser


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    configuration, result = document["configuration"], document["result"]
    size = configuration["bytes_of_features"] / 2**30
    question = (
        f"**Question.** Can {configuration['rows']:,} pairs of width {configuration['width']}, {size:.1f} GiB of "
        f"float16 features, be learned by ranks that have {configuration['limit_mib_each']} MiB each?\n"
    )
    lines = [
        "# A dataset that is larger than memory\n",
        question,
        _LIMIT,
        *_table("machine", document["machine"]),
        *_table("configuration", configuration),
        "## Result\n",
        *_table("result", {k: v for k, v in result.items() if k != "seconds_of_phases"}),
        *_table("seconds of each phase, leading rank", result["seconds_of_phases"]),
        (
            "Made by `python -m benchmarks.large_dataset`; seconds were measured on a shared "
            "machine.\n"
        ),
    ]
    return "\n".join(lines)


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    rows = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in values.items()]
    return [f"| {name} | |", "|---|---|", *rows, ""]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
