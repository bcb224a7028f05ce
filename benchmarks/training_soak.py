"""Does the memory of any process grow from job to job?

`python -m benchmarks.training_soak`: runs the whole local system and learns one dataset after
another for several models, all in the same warm ranks, and records the memory of every process
after each job.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import psutil

from benchmarks.command_line import OneLineParser, count, listed, log_progress, table
from benchmarks.processes import family, title
from benchmarks.report import machine
from benchmarks.swaps.memory import Slope, slope
from cmcl.client import Client
from cmcl.contract.model import ModelSpec
from cmcl.demo.stream import Stream, read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports

# By words in the process title.
_ROLES = {
    "rank": "RayTrainWorker",
    "driver": "workers.driver --store",
    "pool": "PoolActor",
    "replica": "ServeReplica",
    "Serve's controller": "ServeController",
    "raylet": "raylet/raylet",
    "Ray's head (GCS)": "gcs_server",
}


@dataclass
class MemorySamples:
    """MiB of each process after each job, by role and process id."""

    jobs: int = 0
    mebibytes: dict[str, list[float]] = field(default_factory=dict)

    def sample(self, stack: LocalStack) -> None:
        """Take a sample after a job. A process that started later gets a separate curve."""
        self.jobs += 1
        for name, size in _sizes(stack).items():
            self.mebibytes.setdefault(name, []).append(size)

    def growth(self, since: int) -> dict[str, Slope | None]:
        """Return MiB per hundred jobs after the first `since`; None for a process that did not run
        all the time."""
        return {
            name: slope(range(since, self.jobs), sizes[since:]) if len(sizes) == self.jobs else None
            for name, sizes in self.mebibytes.items()
        }


def _sizes(stack: LocalStack) -> Mapping[str, float]:
    """Return private MiB, without mapped files, of all running processes."""
    roles = [(psutil.Process(stack.processes["service"].pid), "service")]
    for each in family(stack.processes["ray"].pid):
        roles += [
            (each, f"{role} {each.pid}") for role, words in _ROLES.items() if words in title(each)
        ]
    found = {}
    for process, name in roles:
        with suppress(psutil.NoSuchProcess):
            info = process.memory_info()
            found[name] = float(info.rss - info.shared) / 2**20
    return found


matplotlib.use("agg")


_RESULTS = Path(".cmcl/benchmarks")
_STEM = "training-soak"
_DOTS_PER_INCH = 110
# After these, all modules are imported and each kind of dataset has occurred.
_SETTLED_MODELS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write page, plot and document. Return 1 if a job failed."""
    options = _parser().parse_args(arguments)
    # Raise, so that context managers stop Ray, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    document = _measured(options)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / _STEM
    _draw(document, stem.with_suffix(".png"))
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n")
    stem.with_suffix(".md").write_text(_markdown(document))
    print(_markdown(document))
    print(json.dumps(document), flush=True)
    return 1 if document["failed"] else 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    stream, samples = read_stream(options.stream), MemorySamples()
    seconds: list[float] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="cmcl-soak-") as folder:
        stack = LocalStack(
            *(Path(folder) / "stack", Ports.free(), options.ranks),
            allowed_prefixes=(stream.folder.as_uri(),),
        )
        with stack, Client(stack.service_url, stack.embeddings_url) as client:
            for state, took in _jobs(client, stream, options):
                samples.sample(stack)
                seconds.append(took)
                failed += [state] if state != "published" else []
                log_progress(f"{samples.jobs} jobs, the last in {took:.1f} s: {state}")
    since = _SETTLED_MODELS * len(stream.datasets)
    return {
        "machine": machine(),
        "jobs": samples.jobs,
        "failed": failed,
        "ranks": options.ranks,
        "width": options.width,
        "since": since,
        "seconds": seconds,
        "mebibytes": samples.mebibytes,
        "growth": {
            name: asdict(found) if found else None for name, found in samples.growth(since).items()
        },
    }


def _jobs(
    client: Client, stream: Stream, options: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    """Learn one dataset after another. Yield the final state and duration of each job."""
    for number in range(options.models):
        model = f"soak-{number}"
        client.create_model(model, ModelSpec(width=options.width, modalities=stream.modalities))
        for dataset in stream.datasets:
            begin = time.monotonic()
            accepted = client.add_dataset(model, dataset.name, dataset.pair, dataset.shards)
            ended = client.watch(str(accepted["job"]["id"]), poll_seconds=0.1)
            yield str(ended["state"]), time.monotonic() - begin


def _markdown(document: Mapping[str, Any]) -> str:
    since, seconds = document["since"], document["seconds"]
    rows = [
        [name.rpartition(" ")[0] or name, *(f"{sizes[at]:.0f}" for at in (0, since, -1)), words]
        for name, sizes in document["mebibytes"].items()
        if len(sizes) == document["jobs"]
        for words in [_words(document["growth"][name])]
    ]
    memory = (
        "Memory is private to a process, without mapped files. *Growth*: MiB per hundred jobs after "
        f"the first {since}, with its 95 % interval.\n"
    )
    jobs = (
        f"{len(document['failed'])} jobs failed. A job took {median(seconds[since : 2 * since]):.1f} "
        f"s after the first {since} (median of as many), and {median(seconds[-since:]):.1f} s at "
        "the end.\n"
    )
    return "\n".join(
        [
            "# Many jobs in the same processes\n",
            "## Question",
            "Does the memory of any process grow from job to job, and do jobs take longer?\n",
            "## Machine",
            listed(document["machine"]),
            "\n## Configuration",
            f"- {document['jobs']} jobs: the datasets of examples/stream for model after model",
            f"- width: {document['width']}",
            f"- ranks: {document['ranks']}, which stay between jobs\n",
            memory,
            "## Result",
            jobs,
            table(["process", "first job", f"job {since + 1}", "last job", "growth"], rows),
            f"\n![Memory over jobs]({_STEM}.png)\n",
        ]
    )


def _words(growth: Mapping[str, float] | None) -> str:
    return f"{growth['value']:+.1f} ± {growth['half_width']:.1f}" if growth else "–"


def _draw(document: Mapping[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(11, 4.6), layout="constrained")
    for name, sizes in document["mebibytes"].items():
        if len(sizes) == document["jobs"]:
            axis.plot(range(1, len(sizes) + 1), sizes, label=name.rpartition(" ")[0] or name)
    axis.set(xlabel="jobs", ylabel="private MiB of a process", xlim=(1, None), ylim=(0, None))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.training_soak", description=__doc__)
    parser.add_argument(
        "--models", type=_models, default=12, help="number of models; each learns all datasets"
    )
    parser.add_argument("--width", type=count, default=512, help="of the embeddings")
    parser.add_argument("--ranks", type=count, default=2, help="that stay warm (default: 2)")
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


def _models(text: str) -> int:
    """Parse a number of models that exceeds the warm-up."""
    if (models := count(text)) <= _SETTLED_MODELS:
        raise argparse.ArgumentTypeError(f"{text} is too few: at least {_SETTLED_MODELS + 1}")
    return models


if __name__ == "__main__":
    sys.exit(main())
