"""The demo from start to end: start, post, watch, query, compare. Read it top to bottom."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cmcl.client import Client, CmclError, Json
from cmcl.demo.figures import StreamFigures, stream_figures
from cmcl.demo.picture import draw_forgetting
from cmcl.demo.queries import QueryLoad, QueryReport
from cmcl.demo.stream import Stream, StreamDataset, read_stream
from cmcl.demo.tables import comparison_table, version_table
from cmcl.progress import watch_with_bar
from cmcl.stack import LocalStack, Ports
from workers.contract.model import ModelSpec

PROTECTED, UNPROTECTED = "demo", "demo-unprotected"
_SWAP_SECONDS = 30.0


@dataclass(frozen=True)
class DemoOptions:
    """What a user may choose."""

    stream: Path
    folder: Path
    ranks: int = 2
    queries_per_second: float = 200.0


class DemoFailed(Exception):
    """A job did not end in a version; the message says which and why."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run all of it; answers the exit code."""
    stream = read_stream(options.stream)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    console.print(f"starting Ray, the control plane and the endpoint in {options.folder} ...")
    stack = LocalStack(
        options.folder, Ports.free(), options.ranks, allowed_prefixes=(stream.folder.as_uri(),)
    )
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        console.print(f"control plane {stack.service_url}, embeddings {stack.embeddings_url}")
        load = _query_load(stack, stream, options.queries_per_second)
        to_live = _learn_protected(client, stream, load, console)
        _learn_unprotected(client, stream, console)
        queries = load.stop()
        protected, unprotected = _figures(client, PROTECTED), _figures(client, UNPROTECTED)
        bound = _spec(stream, "nullspace").protection.max_drift
    picture = options.folder / "forgetting.png"
    draw_forgetting(protected, unprotected, picture)
    console.print(version_table(protected, to_live))
    console.print(comparison_table(protected, unprotected))
    _print_queries(console, queries)
    console.print(f"forgetting matrix: {picture}")
    print(json.dumps(_document(protected, unprotected, queries, to_live)), flush=True)
    return 0 if not queries.failures and protected.max_drift <= bound else 1


def _query_load(stack: LocalStack, stream: Stream, rate: float) -> QueryLoad:
    return QueryLoad("127.0.0.1", stack.ports.embeddings, PROTECTED, stream.probe_rows(4), rate)


def _spec(stream: Stream, method: str) -> ModelSpec:
    return ModelSpec.model_validate({"modalities": stream.modalities, "method": method})


def _learn_protected(
    client: Client, stream: Stream, load: QueryLoad, console: Console
) -> list[float]:
    """Post the datasets one after another; seconds from each POST to its first answered query."""
    client.create_model(PROTECTED, _spec(stream, "nullspace"))
    seconds = []
    for version, dataset in enumerate(stream.datasets, start=1):
        posted = time.monotonic()
        _learn(client, PROTECTED, dataset, console)
        if version == 1:
            _wait_until_live(client, stream)
            load.start()
        answered = load.wait_for(version, _SWAP_SECONDS)
        if answered is None:
            raise DemoFailed(f"version {version} did not answer within {_SWAP_SECONDS:g} s")
        seconds.append(round(answered - posted, 2))
    return seconds


def _learn_unprotected(client: Client, stream: Stream, console: Console) -> None:
    client.create_model(UNPROTECTED, _spec(stream, "vanilla"))
    for dataset in stream.datasets:
        _learn(client, UNPROTECTED, dataset, console)


def _learn(client: Client, model: str, dataset: StreamDataset, console: Console) -> None:
    accepted = client.add_dataset(
        model, dataset.name, dataset.pair, dataset.shards, dataset.evaluation_shards
    )
    title = f"{model:<16} {dataset.name:<12} {dataset.pair!s:<12}"
    job = watch_with_bar(client, accepted["job"]["id"], title, console)
    if job["state"] != "published":
        raise DemoFailed(f"{dataset.name} ended as {job['state']}: {job['message']}")


def _wait_until_live(client: Client, stream: Stream) -> None:
    """The first version has nothing to swap with: wait until it answers at all."""
    modality, rows = next(iter(stream.probe_rows(1).items()))
    deadline = time.monotonic() + _SWAP_SECONDS
    while True:
        try:
            client.embed(PROTECTED, modality, rows)
            return
        except CmclError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _figures(client: Client, model: str) -> StreamFigures:
    numbers = sorted(version["version"] for version in client.versions(model))
    return stream_figures([client.version(model, number) for number in numbers])


def _print_queries(console: Console, queries: QueryReport) -> None:
    console.print(
        f"queries: {queries.sent} sent, {len(queries.failures)} failed, "
        f"p50 {1000 * queries.percentile(0.5):.1f} ms, p99 {1000 * queries.percentile(0.99):.1f} ms, "
        f"versions seen {sorted(queries.first_seen)}"
    )
    for failure in queries.failures[:5]:
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
