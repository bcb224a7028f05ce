"""Does a system whose processes are killed again and again show any client what it should not?

`python -m benchmarks.chaos` starts the whole local system on PostgreSQL, with a model of each policy
that learns one dataset after another, a collection that follows one of them, and clients that
promote, roll back, embed, write and search. At random moments it kills -9 a process of any kind;
with `--kills 0 --minutes 10 --slow-store 2 0.01` it kills none, and the store is slow in its place.
What clients did and saw is then checked against what there is at the end (`history.py`).
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.chaos.clients import (
    COLLECTION,
    Asker,
    Clients,
    Operator,
    Poster,
    Rows,
    Texts,
    Writer,
)
from benchmarks.chaos.history import (
    Embedded,
    History,
    Outcome,
    PointerSeen,
    Promoted,
    violations,
)
from benchmarks.chaos.killer import KINDS, Killer
from benchmarks.chaos.slow_store import StackOnS3, slow_s3
from benchmarks.command_line import (
    OneLineParser,
    add_out,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.control.databases import postgresql_server
from benchmarks.post_to_live import RAW, RAW_ENCODERS, RAW_PAIR, raw_encoders
from benchmarks.report import machine
from cmcl.client import Client, CmclError
from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import VersionManifest
from cmcl.demo.run import Stream, read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports
from cmcl.storage.uris import open_store
from cmcl.storage.versions import read_version
from workers.model.heads import ModalityHeads
from workers.train.versions import read_heads

_POLICIES = ("improve", "preserve")
_RAW_MODEL = "raw"
_WRITERS = 2
# Held-out rows of each modality that are embedded.
_PROBES = 20
# Of one dataset: enough for a batch of training on rows, and for recall.
_ROWS = 140
_TRAINING = {"batch_size": 64, "epochs": 20}
# Kills come faster than attempts end.
_SETTINGS = {"CMCL_MAX_ATTEMPTS": "50"}
_SETTLES_SECONDS = 900.0
_QUERY_SECONDS, _WRITE_SECONDS, _POINTER_SECONDS, _TEXT_SECONDS = 0.1, 0.5, 0.5, 2.0
_PROMOTE_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if there is a violation."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cmcl-chaos-") as folder:
        document = run(options, Path(folder))
    publish(options, "chaos", _markdown(document), document)
    return 1 if document["violations"] else 0


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start the stack, the clients and the killer, and check the history."""
    stream = read_stream(options.stream)
    (folder / "shards").mkdir()
    slow = slow_s3(*options.slow_store) if options.slow_store else nullcontext()
    with postgresql_server(folder) as database, slow:
        stack = (StackOnS3 if options.slow_store else LocalStack)(
            folder / "stack",
            Ports.free(),
            ranks=2,
            allowed_prefixes=(
                folder.resolve().as_uri(),
                stream.folder.as_uri(),
                RAW.parent.as_uri(),
            ),
            extra_environment={**_SETTINGS, "CMCL_DATABASE_URL": database.url},
            encoders=raw_encoders(),
            plugins=Path(__file__).parents[2] / "examples/encoders",
            report=log_progress,
        )
        connect = partial(Client, stack.service_url, stack.embeddings_url)
        with stack, connect() as client:
            _create(client, stream)
            history, rows = History(), stream.probe_rows(_PROBES)
            clients = Clients(history, connect)
            posters = [
                Poster(history, policy, _pieces(stream, folder / "shards" / policy))
                for policy in _POLICIES
            ]
            for poster in posters:
                poster.post(client)
            client.create_collection(COLLECTION, _POLICIES[0])
            _start(clients, posters, history, rows)
            killer = Killer(
                stack, database, options.pause, options.kills, log_progress, options.seed
            )
            began = time.time()
            killer.start()
            while clients.are_running and not (
                killer.has_ended and time.time() - began >= 60 * options.minutes
            ):
                time.sleep(1)
            killer.stop()
            seconds = time.time() - began
            log_progress(f"{len(killer.kills)} kills in {seconds:.0f} s; waiting for the jobs")
            for poster in posters:
                poster.stop_after_this()
            _wait(lambda: all(poster.has_ended for poster in posters) or not clients.are_running)
            clients.stop()
            outcome = _outcome(client)
            heads = cache(partial(_heads, stack.store_uri))

            def embed(key: Embedded) -> list[float]:
                row = torch.tensor([rows[key.modality][key.row]])
                found: list[float] = (
                    heads(key.model, key.version).embed(key.modality, row)[0].tolist()
                )
                return found

            wrong = violations(history, outcome, cache(embed))
    return {
        "violations": wrong,
        "kills": dict(Counter(kill.kind for kill in killer.kills)),
        "seconds": round(seconds),
        "datasets": Counter(each.model for each in history.posted),
        "versions": {model: len(found) for model, found in outcome.versions.items()},
        "promotions": {model: len(found) for model, found in outcome.promotions.items()},
        "pointer_reads": len(history.pointers),
        "answers": len(history.answers),
        "vectors": len(history.vectors),
        "writes": len(history.writes),
        "acknowledged": sum(each.revision is not None for each in history.writes),
        "searches": len(history.searches),
        "failures": Counter(what for _, what in history.failures),
        "longest_without_answer_s": _longest_gap([each.ended for each in history.answers]),
        "log": [asdict(kill) for kill in killer.kills],
        "seed": options.seed,
        "pause": list(options.pause),
        "slow_store": options.slow_store,
        "machine": machine(),
    }


def _create(client: Client, stream: Stream) -> None:
    """One model of each policy, and one with encoders that has learned its raw pairs."""
    for policy in _POLICIES:
        client.create_model(
            policy,
            {"modalities": stream.modalities, "policy": policy, "lift": 0, "training": _TRAINING},
        )
    modalities = {name: {"encoder": encoder} for name, encoder in RAW_ENCODERS.items()}
    client.create_model(_RAW_MODEL, {"modalities": modalities})
    posted = client.add_dataset(_RAW_MODEL, "emoji", RAW_PAIR, [RAW], evaluation_share=0.15)
    client.watch(posted.job.id, timeout=_SETTLES_SECONDS)


def _start(clients: Clients, posters: Sequence[Poster], history: History, rows: Rows) -> None:
    for seed, (policy, poster) in enumerate(zip(_POLICIES, posters, strict=True)):
        operator = Operator(history, policy, seed)
        clients.start(poster.post, _POINTER_SECONDS)
        clients.start(operator.read, _POINTER_SECONDS)
        clients.start(operator.promote, _PROMOTE_SECONDS)
        clients.start(Asker(history, policy, rows, seed).embed, _QUERY_SECONDS)
    for seed in range(_WRITERS):
        writer = Writer(history, _POLICIES[0], "image", rows, seed)
        clients.start(writer.write, _WRITE_SECONDS)
    clients.start(Texts(_RAW_MODEL, "text").embed_text, _TEXT_SECONDS)


def _pieces(stream: Stream, folder: Path) -> Iterator[tuple[str, ModalityPair, ShardRef, ShardRef]]:
    """Random rows of the stream's datasets in turn, each a dataset with a file of its own."""
    folder.mkdir()
    generator = random.Random(0)  # noqa: S311
    tables = [pq.read_table(dataset.train) for dataset in stream.datasets]
    for piece in itertools.count():
        for dataset, rows in zip(stream.datasets, tables, strict=True):
            file = folder / f"{dataset.name}-{piece}.parquet"
            pq.write_table(rows.take(generator.sample(range(rows.num_rows), _ROWS)), file)
            yield file.stem, dataset.pair, ShardRef(uri=file.as_uri()), dataset.evaluation_shards[0]


def _wait(has_ended: Any) -> None:
    """Wait until the clients have ended what they do. Raises SystemExit if that takes too long."""
    deadline = time.monotonic() + _SETTLES_SECONDS
    while not has_ended():
        if time.monotonic() > deadline:
            raise SystemExit(f"the clients have not ended within {_SETTLES_SECONDS:g} s")
        time.sleep(1)


def _outcome(client: Client) -> Outcome:
    """Read what there is at the end, from a system that is not being killed any longer."""
    deadline = time.monotonic() + _SETTLES_SECONDS
    while True:
        try:
            return Outcome(
                versions={model: _manifests(client, model) for model in _POLICIES},
                promotions={
                    model: [
                        Promoted(each.generation, each.version, each.created_at.timestamp())
                        for each in client.promotions(model)
                    ]
                    for model in _POLICIES
                },
                live={model: _live(client, model) for model in _POLICIES},
                items={
                    item.id: int((item.payload or {})["number"])
                    for item in client.collection_items(COLLECTION)
                },
            )
        except CmclError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"the system does not recover: {error}") from error
            time.sleep(1)


def _manifests(client: Client, model: str) -> list[VersionManifest]:
    versions = client.versions(model, order="asc")
    return [client.version(model, each.version).manifest for each in versions]


def _live(client: Client, model: str) -> PointerSeen:
    began = time.time()
    live = client.live(model)
    return PointerSeen(model, began, time.time(), live.version, live.generation)


def _heads(store_uri: str, model: str, version: int) -> ModalityHeads:
    store = open_store(store_uri)
    return read_heads(store, read_version(store, model, version))


def _longest_gap(times: Sequence[float]) -> float:
    ordered = sorted(times)
    return round(
        max((after - before for before, after in itertools.pairwise(ordered)), default=0.0), 1
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    parser.add_argument("--kills", type=int, default=200, help="how many (default: 200)")
    parser.add_argument(
        "--pause",
        type=float,
        nargs=2,
        default=(6.0, 24.0),
        metavar=("SHORTEST", "LONGEST"),
        help="seconds between kills (default: 6 24)",
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="how long it takes at least")
    parser.add_argument(
        "--slow-store",
        type=float,
        nargs=2,
        metavar=("SECONDS", "ERRORS"),
        help="the store is S3, each call takes SECONDS, and a share of ERRORS is answered 503",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments, kinds and clients")
    add_out(parser)
    return parser


def _markdown(document: dict[str, Any]) -> str:
    kills = document["kills"]
    wrong = document["violations"]

    def each(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))

    facts = {
        "datasets that were accepted": each(document["datasets"]),
        "versions": each(document["versions"]),
        "generations of the pointer": each(document["promotions"]),
        "reads and acknowledged changes of the pointer": document["pointer_reads"],
        "answers of the endpoint": document["answers"],
        "different vectors, each compared with the heads of its version": document["vectors"],
        "writes, and those acknowledged": f"{document['writes']}, {document['acknowledged']}",
        "searches that waited for a write": document["searches"],
        "calls that were refused, or failed after the client's repetitions": each(
            document["failures"]
        ),
        "longest time without an answer": f"{document['longest_without_answer_s']} s",
    }
    return "\n".join(
        [
            "# Chaos",
            "",
            f"Machine: {', '.join(f'{name} {value}' for name, value in document['machine'].items())}.",
            "",
            *(
                [f"The store is S3. Each call takes {slow[0]:g} s, and {slow[1]:.0%} fail.", ""]
                if (slow := document["slow_store"])
                else []
            ),
            f"{sum(kills.values())} kills -9 in {document['seconds']} s. **Violations: {len(wrong)}.**",
            "",
            table(["killed", "times"], [[kind, kills.get(kind, 0)] for kind in KINDS]),
            "",
            listed(facts),
            "",
            *[f"- {violation}" for violation in wrong],
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
