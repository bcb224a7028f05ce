"""How do failures of replicas, HAProxy, Serve's controller, a node or the store affect clients?

`python -m benchmarks.serving_chaos`: two replicas on two Ray nodes of this machine, plain clients and
`cmcl.Client`, one fault after the other; killing a replica also with Ray's settings of HAProxy.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import OneLineParser, count, listed, log_progress, table
from benchmarks.endpoint.load import ClientProcess, Load
from benchmarks.endpoint.messages import FORMS, Array, Expected, feature_request, features
from benchmarks.endpoint.serve_stack import EndpointStack
from benchmarks.endpoint.stored import MODALITY, MODEL, heads_of, store_version
from benchmarks.outages.cases import CASES, System
from benchmarks.outages.outcome import Moment, Outcome, RetryingClients, outcome
from benchmarks.report import machine
from cmcl.contract.version import LivePointer
from cmcl.haproxy import BUFFER_KIB, rays_own
from cmcl.storage.uris import open_store
from cmcl.storage.versions import write_live

_RESULTS = Path(".cmcl/benchmarks")
_STEM = "serving-chaos"
_REQUESTS = 8
_RAYS, _OURS = "Ray's", "ours"
# Cases that depend on HAProxy's settings.
_COMPARED = ("replica", "node", "proxy")

_QUESTION = (
    "Parts of the endpoint are killed under load. How many requests fail, how, and for how long? Is "
    "any response wrong?"
)
_HOW = """\
- *plain clients* send one request at a time without retries. A request without status 200 counts as
  failed: *cut* (the connection was lost), *refused* (no listener), or its status. Every response is
  compared with the expected embeddings.
- *cmcl.Client* retries; a call counts as failed if it raises.
- *silence*: the longest time without a response to any plain client. *whole*: from the fault until
  both replicas respond directly and through HAProxy.
- *Ray's*: HAProxy with Ray's settings, which retries only failed connections. *ours*: HAProxy
  buffers requests of up to {buffer} KiB and sends them to the other replica if the first one dies
  before it responds. This is safe because an embedding request changes no state
  (`cmcl/haproxy.py`)."""


@dataclass(frozen=True)
class _Material:
    """Requests and expected responses, R × B × F and R × B × E."""

    rows_RBF: Array
    expected_RBE: Array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if a response was wrong, or if `cmcl.Client` raised with our
    settings."""
    options = _parser().parse_args(arguments)
    # Raise, so that context managers stop Ray, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    compared = [] if options.without_rays else [name for name in options.cases if name in _COMPARED]
    found: list[Outcome] = []
    with ClientProcess() as clients:
        if compared:
            found += _outcomes(options, clients, compared, _RAYS, rays_own())
        found += _outcomes(options, clients, options.cases, _OURS, {})
    document = _document(options, found)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / _STEM
    stem.with_suffix(".json").write_text(json.dumps(document) + "\n")
    stem.with_suffix(".md").write_text(markdown(document))
    print(markdown(document))
    print(json.dumps(document), flush=True)
    ours = [each for each in found if each.settings == _OURS]
    return 1 if any(each.wrong for each in found) or any(each.client_failed for each in ours) else 0


def _outcomes(
    options: argparse.Namespace,
    clients: ClientProcess,
    cases: Sequence[str],
    settings: str,
    environment: Mapping[str, str],
) -> list[Outcome]:
    """Start one system and run all of these cases with repetitions."""
    log_progress(f"starting, proxy: {settings}")
    material = _material(options)
    found = []
    with _system(options, environment, material) as system:
        for name in cases:
            for _ in range(options.repeats if name == "replica" else 1):
                found.append(_outcome(options, clients, system, material, (name, settings)))
                log_progress(str(found[-1]))
    return found


@contextmanager
def _system(
    options: argparse.Namespace, environment: Mapping[str, str], material: _Material
) -> Iterator[System]:
    with tempfile.TemporaryDirectory(prefix="cmcl-chaos-") as folder:
        ours = EndpointStack(Path(folder) / "ours", replicas=2, environment=environment, nodes=2)
        with ours:
            store = open_store(ours.store_uri)
            store_version(store, 1, options.width)
            write_live(store, MODEL, LivePointer(generation=1, version=1))
            ours.wait_for_version(1, options.width)
            yield System(ours, material.rows_RBF[0])


def _outcome(
    options: argparse.Namespace,
    clients: ClientProcess,
    system: System,
    material: _Material,
    what: tuple[str, str],
) -> Outcome:
    name, settings = what
    address = system.endpoint.address
    requests = [
        feature_request(address, options.form, rows_BF, model=MODEL, modality=MODALITY)
        for rows_BF in material.rows_RBF
    ]
    load = Load(address, requests, options.clients, 3600, check_each=True)
    clients.begin(load, Expected(options.form, {1: material.expected_RBE}))
    retrying = RetryingClients(address, material.rows_RBF[0], material.expected_RBE[0], 2)
    try:
        time.sleep(options.seconds)
        begin = time.time()
        gone = CASES[name].act(system)
        system.wait_until_recovered(gone)
        whole = time.time()
        time.sleep(options.seconds)
    finally:
        answers, calls = clients.end(), retrying.end()
    moment = Moment(name, CASES[name].words, settings, begin, whole, whole + options.seconds)
    return outcome(moment, answers, calls)


@torch.inference_mode()
def _material(options: argparse.Namespace) -> _Material:
    rows_RBF = features(_REQUESTS, options.rows, options.width)
    heads = heads_of(1, options.width)
    embedded = [heads.embed(MODALITY, torch.from_numpy(rows_BF)).numpy() for rows_BF in rows_RBF]
    return _Material(rows_RBF, np.stack(embedded))


def _document(options: argparse.Namespace, found: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "outcomes": [{**asdict(each), "lost": each.lost} for each in found],
        "configuration": {
            "width": f"F = E = {options.width}, conditioned heads",
            "replicas": "2, each on its own Ray node on this machine; HAProxy on the head",
            "clients": f"{options.clients} plain, {options.rows} row(s) a request, {options.form}; "
            "2 of cmcl.Client",
            "seconds": f"{options.seconds:g} before each fault, and after it is over",
            "buffer of HAProxy, KiB": BUFFER_KIB,
            "seed": 0,
        },
        "machine": machine(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.serving_chaos", description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="(default: all)"
    )
    parser.add_argument(
        "--repeats", type=count, default=3, help="of killing a replica (default: 3)"
    )
    parser.add_argument(
        "--without-rays", action="store_true", help="skip Ray's settings of HAProxy"
    )
    parser.add_argument(
        "--seconds", type=float, default=4, help="before and after each fault (default: 4)"
    )
    parser.add_argument("--clients", type=count, default=8, help="plain clients (default: 8)")
    parser.add_argument("--rows", type=count, default=1, help="per request (default: 1)")
    parser.add_argument("--form", choices=FORMS, default="base64", help="(default: base64)")
    parser.add_argument("--width", type=count, default=1024, help="F = E (default: 1024)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    how = _HOW.format(buffer=document["configuration"]["buffer of HAProxy, KiB"])
    parts = [
        "# Serving while parts are killed",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + "\n\n" + how,
        "## Result\n" + _outcomes_table(document["outcomes"]),
    ]
    return "\n\n".join(parts) + "\n"


def _outcomes_table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one["words"],
            one["settings"],
            f"{one['answers']:,}",
            _kinds(one["failed"]),
            f"{one['client_calls']:,}",
            _kinds(one["client_failed"]),
            str(one["wrong"]),
            *(f"{one[key]:.2f}" for key in ("silence", "client_slowest", "whole")),
        ]
        for one in outcomes
    ]
    plain = ("plain requests", "failed")
    client = ("calls of cmcl.Client", "failed")
    times = ("silence, s", "slowest call of cmcl.Client, s", "whole, s")
    return table(("fault", "proxy", *plain, *client, "wrong responses", *times), rows)


def _kinds(found: Mapping[str, int]) -> str:
    if not found:
        return "**0**"
    return ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))


if __name__ == "__main__":
    sys.exit(main())
