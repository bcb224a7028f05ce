"""The demo from start to end: start, post, watch, query, compare."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cmcl.cli.progress import watch_with_bar
from cmcl.client import Client, CmclError, Json
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.demo.figures import (
    StreamFigures,
    comparison_table,
    draw,
    stream_figures,
    version_table,
)
from cmcl.demo.queries import QueryLoad, QueryReport
from cmcl.demo.raw import RawFailure, RawReport, learn_raw
from cmcl.demo.stream import Stream, StreamDataset, read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import FolderLock, Ports

MODEL = "demo"
# Marks a folder of the demo, which may be emptied.
_MARK = ".cmcl-demo"
_SWAP_SECONDS = 120.0
# Features of each modality that are queried.
_PROBES = 4


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo."""

    stream: Path
    raw: Path
    folder: Path
    ranks: int = 2
    queries_per_second: float = 200.0
    # Of the raw pairs, by the names that `MODALITIES` of `raw.py` binds to.
    encoders: tuple[EncoderSpec, ...] = ()
    plugins: Path | None = None


class DemoError(Exception):
    """The demo cannot continue: a job without a version, or a folder with other files."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the demo and return the exit code."""
    stream = read_stream(options.stream)
    _empty(options.folder)
    stack = LocalStack(
        options.folder,
        Ports.free(),
        options.ranks,
        allowed_prefixes=(stream.folder.as_uri(),),
        encoders=options.encoders,
        plugins=options.plugins,
        report=lambda line: console.print(line, markup=False, highlight=False),
    )
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        console.print(f"control plane {stack.service_url}, embeddings {stack.embeddings_url}")
        console.print(f"watch it at {stack.page_url}")
        load = _query_load(stack, stream, options.queries_per_second)
        to_live = _learn_protected(client, stream, load, console)
        raw = _learn_raw(client, options.raw, console)
        queries = load.stop()
        versions = [client.version(MODEL, number + 1).manifest for number in range(len(to_live))]
    protected = stream_figures(versions)
    unprotected = stream_figures(_without_protection(stack, versions[-1], console))
    bound = versions[-1].spec.drift_bound
    picture = options.folder / "forgetting.svg"
    draw(protected, unprotected, picture)
    console.print(version_table(protected, to_live))
    console.print(comparison_table(protected, unprotected))
    _print_queries(console, queries)
    _print_raw(console, raw)
    console.print(f"forgetting matrix: {picture}")
    document = _document(protected, unprotected, queries, to_live)
    print(json.dumps({**document, "raw": raw.document()}), flush=True)
    within = bound is None or protected.max_drift <= bound
    return 0 if within and not queries.failures and not raw.failures else 1


def _empty(folder: Path) -> None:
    """Empty the folder of an earlier demo. Raises DemoError if it has other files, and StackError if a
    demo is running in it."""
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARK).exists()):
            raise DemoError(
                f"{folder} was not made by an earlier demo and would be emptied; choose another --folder"
            )
        # Fails while a demo is running there.
        FolderLock(folder).release()
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARK).touch()


def _query_load(stack: LocalStack, stream: Stream, rate: float) -> QueryLoad:
    probes = stream.probe_rows(_PROBES, datasets=1)
    return QueryLoad("127.0.0.1", stack.ports.embeddings, MODEL, probes, rate)


def _learn_protected(
    client: Client, stream: Stream, load: QueryLoad, console: Console
) -> list[float]:
    """Post the datasets in order. Return seconds from each POST to the first response of its version."""
    client.create_model(MODEL, ModelSpec(modalities=stream.modalities))
    seconds = []
    probes = stream.probe_rows(_PROBES, datasets=1)
    for version, dataset in enumerate(stream.datasets, start=1):
        posted = time.monotonic()
        _learn(client, dataset, console)
        if version == 1:
            _wait_until_live(client, stream)
            load.start()
        answered = load.wait_for(version, _SWAP_SECONDS)
        if answered is None:
            raise DemoError(f"version {version} was not live within {_SWAP_SECONDS:g} s")
        seconds.append(round(answered - posted, 2))
        learned = stream.probe_rows(_PROBES, datasets=version)
        load.add({name: rows for name, rows in learned.items() if name not in probes})
        probes = learned
    return seconds


def _learn_raw(client: Client, folder: Path, console: Console) -> RawReport:
    """Learn the raw datasets, and query the model at the same time. Raises DemoError."""
    try:
        return learn_raw(client, folder, console)
    except RawFailure as error:
        raise DemoError(str(error)) from error


def _learn(client: Client, dataset: StreamDataset, console: Console) -> None:
    accepted = client.add_dataset(
        MODEL, dataset.name, dataset.pair, dataset.shards, dataset.evaluation_shards
    )
    title = f"{dataset.name:<12} {dataset.pair!s:<12}"
    job = watch_with_bar(client, accepted.job.id, title, console)
    if job.state != "published":
        raise DemoError(f"{dataset.name} ended as {job.state}: {job.message}")


def _wait_until_live(client: Client, stream: Stream) -> None:
    """Wait until the first version is live."""
    modality, rows = next(iter(stream.probe_rows(1).items()))
    deadline = time.monotonic() + _SWAP_SECONDS
    while True:
        try:
            client.embed(MODEL, modality, rows)
            return
        except CmclError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _without_protection(
    stack: LocalStack, last: VersionManifest, console: Console
) -> list[VersionManifest]:
    """Train the same datasets with the method `vanilla`, in one process without Ray."""
    command = [
        *(sys.executable, "-m", "workers.train.rerun", "--method", "vanilla"),
        *("--store", stack.store_uri, "--model", MODEL, "--version", str(last.version)),
        *("--into", (stack.folder / "unprotected").as_uri()),
    ]
    versions = []
    # One thread, as a rank has. On a busy machine two threads wait for each other: 69 s for a dataset that
    # one thread trained in 10 to 23 s, on two shared cores.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alone) as process:
        for line in process.stdout or ():
            versions.append(VersionManifest.model_validate_json(line))
            name = versions[-1].learned[-1].name
            console.print(f"without protection: {name} learned ({len(versions)})")
    if process.returncode:
        raise DemoError(f"{' '.join(command)} ended with {process.returncode}")
    return versions


def _print_queries(console: Console, queries: QueryReport) -> None:
    console.print(
        f"queries: {queries.sent} sent, {len(queries.failures)} failed, "
        f"p50 {1000 * queries.percentile(0.5):.1f} ms, p99 {1000 * queries.percentile(0.99):.1f} ms, "
        f"versions seen {sorted(queries.first_seen)}"
    )
    for failure in queries.failures[:5]:
        console.print(f"  failed: {failure}")


def _print_raw(console: Console, raw: RawReport) -> None:
    figures = raw.document()
    console.print(
        f"raw data: {figures['rows']} rows encoded at {figures['encode_rows_per_second']} rows per second, "
        f"{figures['rejected_rows']} left out; {figures['raw_queries']} raw queries, "
        f"{figures['failed_raw_queries']} failed"
    )
    for dataset in raw.datasets:
        for row in dataset.rejected.first if dataset.rejected else ():
            console.print(f"  left out: {row.place}: {row.reason}")
    for failure in raw.failures[:5]:
        console.print(f"  failed: {failure}")


def _document(
    protected: StreamFigures,
    unprotected: StreamFigures,
    queries: QueryReport,
    to_live: list[float],
) -> Json:
    return {
        "datasets": len(protected.names),
        "versions": len(protected.at_1),
        "queries": queries.sent,
        "failed_queries": len(queries.failures),
        "versions_seen": sorted(queries.first_seen),
        "max_drift": round(protected.max_drift, 4),
        **protected.summary(),
        "unprotected": {**unprotected.summary(), "max_drift": round(unprotected.max_drift, 4)},
        "seconds_post_to_live": to_live,
        "query_seconds_p50": round(queries.percentile(0.5), 4),
        "query_seconds_p99": round(queries.percentile(0.99), 4),
    }
