"""Does each model's chain of versions stay complete while processes are killed?

`python -m benchmarks.chaos` starts the whole local system, posts ten datasets of each model at once,
and kills -9 the service, the Ray head, a rank and a driver in turn at random moments. At the end
there must be ten versions in one chain, each dataset in exactly one of them, every file intact and
the last version live, of each model. With several models, as many attempts are submitted at the same time.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.command_line import OneLineParser, add_out, count, publish
from benchmarks.control.killer import KINDS, Killer
from benchmarks.report import machine
from cmcl.client import Client, CmclError
from cmcl.contract.model import ModelSpec
from cmcl.demo.stream import Stream, StreamDataset, read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.uris import open_store
from cmcl.storage.versions import read_live, read_version, read_version_file


def halves(stream: Stream, folder: Path) -> list[StreamDataset]:
    """Write the halves to `folder`. Return the first halves in order, then the second ones."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        StreamDataset(
            name=f"{dataset.name}-{'ab'[half]}",
            pair=dataset.pair,
            train=_half(dataset.train, half, folder),
            evaluation=_half(dataset.evaluation, half, folder),
        )
        for half in (0, 1)
        for dataset in stream.datasets
    ]


def _half(path: Path, half: int, folder: Path) -> Path:
    table = pq.read_table(path)
    middle = table.num_rows // 2
    part = table.slice(0, middle) if half == 0 else table.slice(middle)
    target = folder / f"{path.stem}-{half}.parquet"
    pq.write_table(part, target)
    return target


_MODEL = "chaos"  # Of several, the first one; the others have a number.
_FINAL = frozenset({"published", "rejected", "failed", "cancelled"})
# Kills come faster than a job takes.
_TIMEOUTS = {"CMCL_MAX_ATTEMPTS": "20"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if anything was lost."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cmcl-chaos-") as folder:
        document = run(options, Path(folder))
    publish(options.out, "chaos", _markdown(document), document)
    return 1 if document["lost"] or document["faults"] else 0


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Post the datasets, kill processes, wait for the jobs, and check the chain."""
    stream = read_stream(options.stream)
    datasets = halves(stream, folder / "shards")[: options.datasets]
    models = [_MODEL, *(f"{_MODEL}-{number}" for number in range(2, options.models + 1))]
    at_once = {"CMCL_ATTEMPTS_AT_ONCE": str(len(models))} if len(models) > 1 else {}
    stack = LocalStack(
        folder / "stack",
        Ports.free(),
        ranks=2,
        allowed_prefixes=(folder.resolve().as_uri(),),
        extra_environment={**_TIMEOUTS, **at_once},
    )
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        for model in models:
            client.create_model(model, ModelSpec(modalities=stream.modalities))
        for dataset, model in product(datasets, models):
            client.add_dataset(
                model, dataset.name, dataset.pair, dataset.shards, dataset.evaluation_shards
            )
        killer = Killer(stack, KINDS, options.pause, lambda: _looks(client), options.seed)
        killer.start()
        began = time.monotonic()
        jobs = _await_end(client, options.minutes * 60)
        killer.stop()
        seconds = round(time.monotonic() - began, 1)
        store = open_store(stack.store_uri)
        faults = [
            f"{model}: {fault}"
            for model in models
            for fault in _faults(store, model, [job for job in jobs if job["model"] == model])
        ]
    published = [job for job in jobs if job["state"] == "published"]
    return {
        "models": len(models),
        "datasets": len(datasets),
        "versions": len(published),
        "lost": len(datasets) * len(models) - len(published),
        "faults": faults,
        "kills": dict(Counter(kill.kind for kill in killer.kills)),
        "log": [asdict(kill) for kill in killer.kills],
        "attempts": {job["id"]: job["attempt"] for job in jobs},
        "seconds": seconds,
        "seed": options.seed,
        "pause": list(options.pause),
        "settings": _TIMEOUTS,
        "machine": machine(),
    }


def _jobs(client: Client) -> list[dict[str, Any]] | None:
    """Return the jobs, or None while the service is unavailable."""
    try:
        return [dict(job) for job in client.jobs()]
    except CmclError:
        return None


def _looks(client: Client) -> str:
    jobs = _jobs(client)
    if jobs is None:
        return "the service is unavailable"
    return ", ".join(
        f"{number} {state}" for state, number in Counter(job["state"] for job in jobs).items()
    )


def _await_end(client: Client, seconds: float) -> list[dict[str, Any]]:
    deadline = time.monotonic() + seconds
    while True:
        jobs = _jobs(client)
        if jobs is not None and all(job["state"] in _FINAL for job in jobs):
            return jobs
        if time.monotonic() > deadline:
            raise SystemExit(f"jobs have not ended within {seconds:g} s: {_looks(client)}")
        time.sleep(0.5)


def _faults(store: ObjectStore, model: str, jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Return inconsistencies of the model's chain; empty if it is complete."""
    faults: list[str] = []
    learned: list[str] = []
    for number, job in enumerate(sorted(jobs, key=lambda each: each["version"] or 0), start=1):
        manifest = read_version(store, model, number)
        learned.append(str(manifest.dataset))
        if manifest.parent != (number - 1 or None):
            faults.append(f"version {number} has the parent {manifest.parent}")
        if (manifest.job, manifest.attempt) != (job["id"], job["attempt"]):
            faults.append(f"version {number} is of {manifest.job}, not of {job['id']}")
        if [line.dataset for line in manifest.learned] != learned:
            faults.append(
                f"the lineage of version {number} does not extend its parent's by one entry"
            )
        for name in manifest.files:
            read_version_file(store, manifest, name)  # Raises if a digest does not match.
    if len(set(learned)) != len(jobs):
        faults.append("a dataset was learned twice")
    live = read_live(store, model)
    if live is None or live.version != len(jobs):
        faults.append(f"live is {live}")
    return faults


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    parser.add_argument(
        "--datasets", type=count, default=10, help="of each model (default: 10, the maximum)"
    )
    parser.add_argument("--models", type=count, default=1, help="(default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument(
        "--pause",
        type=float,
        nargs=2,
        default=(8.0, 24.0),
        metavar=("SHORTEST", "LONGEST"),
        help="seconds between kills (default: 8 24)",
    )
    parser.add_argument("--minutes", type=float, default=20, help="timeout of the whole run")
    add_out(parser)
    return parser


def _markdown(document: dict[str, Any]) -> str:
    kills = ", ".join(f"{kind} {number}" for kind, number in document["kills"].items())
    attempts = sum(document["attempts"].values())
    models = "one model" if document["models"] == 1 else f"each of {document['models']} models"
    summary = (
        f"{document['datasets']} datasets of {models} on the whole local system (two ranks), "
        f"{len(document['log'])} kills -9 in {document['seconds']:g} s: {kills}. "
        f"**{document['versions']} versions, lost: {document['lost']}**, "
        f"{attempts} attempts; inconsistencies found in the chains: {document['faults'] or 'none'}."
    )
    where = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    shortest, longest = document["pause"]
    lines = [
        "# Chaos",
        "",
        f"Machine: {where}. Seed {document['seed']}, {shortest:g} to {longest:g} s between kills.",
        "",
        summary,
        "",
        "| second | killed | process | states of the jobs |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {kill['at']} | {kill['kind']} | {kill['process']} | {kill['jobs']} |"
        for kill in document["log"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
