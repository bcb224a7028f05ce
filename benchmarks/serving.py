"""How fast is the endpoint compared with bare FastAPI with the same products, and with Infinity?

`python -m benchmarks.serving` measures all three alternately on this machine. Infinity needs
packages that conflict with the product's: `make bench-serving` installs it into a separate
environment.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    counts,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.endpoint.load import ClientProcess
from benchmarks.endpoint.messages import FORMS
from benchmarks.endpoint.serve_stack import EndpointStack
from benchmarks.endpoint.stored import MODEL, store_version
from benchmarks.peers import comparison, servers
from benchmarks.peers.comparison import Cell, Schedule, Server, Size
from benchmarks.report import machine
from cmcl.contract.version import LivePointer
from cmcl.storage.uris import open_store
from cmcl.storage.versions import write_live

_INFINITY = Path(".cmcl/bench-infinity")
_BUILD = "benchmarks.peers.infinity_model.build"
_WORDS = 512
_BATCHES = (1, 32, 256)
# 64 clients with 256 rows of JSON exceed a replica's default limits.
_LIMITS = {"max_rows_in_flight": 1 << 17, "max_bytes_in_flight": 1 << 30, "queue_seconds": 60.0}
_GOALS = {"infinity": 1.0, "bare": 1.3, "products": 0.6}
_GOAL_CLIENTS, _GOAL_ROWS = 16, 256

_QUESTION = (
    "How fast is the endpoint compared with the same matrix products in bare FastAPI and uvicorn, "
    "and with Infinity serving a model of comparable cost? Which share of the products' rate "
    "remains?"
)
_SERVERS = """\
- *ours*: the complete endpoint: Ray Serve behind HAProxy, one replica, as `make up` runs it;
  versions, limits, validation of every row, metrics.
- *bare*: one process of FastAPI and uvicorn with a pydantic model and the same heads
  (`benchmarks/peers/bare.py`); one version, no limits, no validation, no metrics.
- *Infinity*: infinity-emb on torch, batches of up to 256, one thread. It accepts texts, so each row
  is one word of a few bytes instead of 1024 numbers; its model is a table and two linear maps of
  the same width, the products of a conditioned head. It has no binary format.

Each client sends one request at a time. All clients run in one process on the same machine and
share its cores with the server. Every response's status is checked, and one response to each
distinct request in full. json: numbers in requests and responses. base64: float32 as base64 in
JSON, in both; Infinity gets texts with either. binary: raw float32 in both."""
_UNIT = (
    "p50 and p95 in ms. Ratios are ours / peer, of p50 (smaller is better) and of requests per "
    "second."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document. Return 1 if a response was
    wrong."""
    options = _parser().parse_args(arguments)
    # Raise, so that context managers stop Ray, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as folder:
        document = measured(options, Path(folder))
    publish(options, "serving", markdown(document), document)
    return 1 if any(cell["wrong"] for cell in document["cells"]) else 0


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    sizes = [Size(*each) for each in product(options.forms, options.rows, options.clients)]
    before = _products(options.width)
    with ExitStack() as stack:
        clients = stack.enter_context(ClientProcess())
        servers, infinity_model = _servers(options, folder, stack)
        schedule = Schedule(options.seconds, options.rounds)
        cells = list(_logged(comparison.compare(clients, servers, sizes, schedule)))
    after = _products(options.width)
    products = {batch: max(before[batch], after[batch]) for batch in before}
    return {
        "cells": [cell.document() for cell in cells],
        "goals": goals(cells, products),
        "products_per_second": products,
        "infinity_model_seconds": infinity_model,
        "configuration": {
            "width": f"F = E = {options.width}, conditioned heads, two modalities",
            "seconds": f"{options.rounds} rounds of {options.seconds:g} s for each cell and server",
            "threads": "one for products in each server",
            "limits of ours": ", ".join(f"{name} {value:g}" for name, value in _LIMITS.items()),
            "seed": 0,
        },
        "machine": {**machine(), **_versions(options)},
    }


def _servers(
    options: argparse.Namespace, folder: Path, stack: ExitStack
) -> tuple[list[Server], dict[str, float] | None]:
    """Start all servers until `stack` exits. Return them, and the time of Infinity's model
    alone."""
    log_progress("starting the servers")
    width = options.width
    ours = stack.enter_context(_ours(folder / "ours", width))
    found = [comparison.ours(ours, width)]
    found.append(comparison.bare(stack.enter_context(servers.bare(folder, width)), width))
    if options.without_infinity:
        return found, None
    programs = options.infinity / "bin"
    model = folder / "infinity-model"
    seconds = _infinity_model(programs, model, width)
    address = stack.enter_context(servers.infinity(folder, programs, model))
    return [*found, comparison.infinity(address, width, _WORDS)], seconds


@contextmanager
def _ours(folder: Path, width: int) -> Iterator[str]:
    """Yield the address of one replica behind HAProxy, with one version."""
    with EndpointStack(folder, settings=_LIMITS) as running:
        store = open_store(running.store_uri)
        store_version(store, 1, width)
        write_live(store, MODEL, LivePointer(generation=1, version=1))
        running.wait_for_version(1, width)
        yield running.address


def _infinity_model(programs: Path, model: Path, width: int) -> dict[str, float]:
    """Build the model with Infinity's interpreter. Return the seconds of its products by batch."""
    if not programs.is_dir():
        raise SystemExit(f"serving: {programs} does not exist; run make bench-serving")
    model.mkdir()
    words = [str(programs / "python"), "-m", _BUILD, str(model), str(width), str(_WORDS)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _products(width: int) -> dict[int, float]:
    return {batch: comparison.products_per_second(width, batch) for batch in _BATCHES}


def goals(cells: Sequence[Cell], products: Mapping[int, float]) -> list[dict[str, Any]]:
    """Return the goals, each with its worst cell."""
    by_place = {(c.server, c.form, c.rows, c.clients): c for c in cells}
    rates, latencies, shares = [], [], []
    for (server, form, rows, clients), cell in by_place.items():
        ours = by_place["ours", form, rows, clients]
        if server == "infinity":
            rates.append((ours.requests_per_second / cell.requests_per_second, _name(cell)))
        if server == "bare" and cell.clients == _GOAL_CLIENTS:
            latencies.append((ours.p50 / cell.p50, _name(cell)))
        if server == "ours" and cell.form == "binary" and cell.rows == _GOAL_ROWS:
            shares.append((cell.rows_per_second / products[_GOAL_ROWS], _name(cell)))
    return [
        *_worst("requests / s, ours / Infinity", min, rates, f"above {_GOALS['infinity']:g}"),
        *_worst("p50, ours / bare, 16 clients", max, latencies, f"at most {_GOALS['bare']}"),
        *_worst("share of the products' rate", min, shares, f"at least {_GOALS['products']}"),
    ]


def _worst(
    what: str, choose: Any, found: Sequence[tuple[float, str]], goal: str
) -> list[dict[str, Any]]:
    if not found:
        return []
    measured, where = choose(found)
    return [{"what": what, "worst": measured, "where": where, "goal": goal}]


def _name(cell: Cell) -> str:
    return f"{cell.form}, {cell.rows} row(s), {cell.clients} client(s)"


def _logged(cells: Iterator[Cell]) -> Iterator[Cell]:
    for cell in cells:
        rate, p50 = cell.requests_per_second, cell.p50
        log_progress(f"{_name(cell)}: {cell.server} {rate:.0f} requests / s, p50 {p50:.2f} ms")
        yield cell


def _versions(options: argparse.Namespace) -> dict[str, str]:
    found = {name: version(name) for name in ("ray", "fastapi", "uvicorn", "pydantic")}
    if options.without_infinity:
        return found
    words = "from importlib.metadata import version; print(version('infinity-emb'))"
    program = str(options.infinity / "bin" / "python")
    done = subprocess.run([program, "-c", words], check=True, capture_output=True, text=True)
    return {**found, "infinity-emb": done.stdout.strip()}


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--width", type=count, default=1024, help="F = E (default: 1024)")
    parser.add_argument("--rows", type=counts, default=(1, 32, 256), metavar="A,B,...")
    parser.add_argument("--clients", type=counts, default=(1, 16, 64), metavar="A,B,...")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--seconds", type=float, default=2, help="per round of a cell (default: 2)")
    parser.add_argument("--rounds", type=count, default=2, help="(default: 2)")
    parser.add_argument("--infinity", type=Path, default=_INFINITY, help=f"(default: {_INFINITY})")
    parser.add_argument("--without-infinity", action="store_true", help="leave it out")
    add_out(parser)
    return parser


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    parts = [
        "# The endpoint under load",
        "## Question\n" + _QUESTION,
        "## Machine\n" + listed(document["machine"]),
        "## Configuration\n" + listed(document["configuration"]) + "\n\n" + _SERVERS,
        "## Result\n" + _goals(document["goals"]) + "\n\n" + _limits(document),
        *_forms(document["cells"]),
    ]
    return "\n\n".join(parts) + "\n"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    rows = [[one["what"], f"{one['worst']:.2f}", one["where"], one["goal"]] for one in goals]
    return table(("", "worst", "where", "goal"), rows)


def _limits(document: Mapping[str, Any]) -> str:
    model = document["infinity_model_seconds"] or {}
    rows = []
    for batch, rate in document["products_per_second"].items():
        theirs = model.get(str(batch))
        other = f"{int(batch) / theirs:,.0f}" if theirs else "–"
        rows.append([str(batch), f"{rate:,.0f}", other])
    words = "Upper bounds: rows per second of the models alone, in a tight loop with one thread."
    return f"{words}\n\n{table(('rows per batch', 'our heads', 'the model that Infinity serves'), rows)}"


def _forms(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for form in dict.fromkeys(cell["form"] for cell in cells):
        mine = [cell for cell in cells if cell["form"] == form]
        found.append(f"### {form}\n{_UNIT}\n\n{_form(mine)}")
    return found


def _form(cells: Sequence[Mapping[str, Any]]) -> str:
    by_place: dict[tuple[int, int], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        by_place.setdefault((cell["rows"], cell["clients"]), {})[cell["server"]] = cell
    lines = []
    for (rows, clients), by_server in by_place.items():
        for name, cell in by_server.items():
            lines.append([str(rows), str(clients), *_cells(name, cell, by_server["ours"])])
    figures = ("p50", "p95", "requests / s", "rows / s", "failed", "p50 ratio", "rate ratio")
    return table(("rows", "clients", "server", *figures), lines)


def _cells(name: str, cell: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    same = cell is ours
    return [
        name,
        f"{cell['p50']:.2f}",
        f"{cell['p95']:.2f}",
        f"{cell['requests_per_second']:,.0f}",
        f"{cell['rows_per_second']:,.0f}",
        str(cell["failed"]),
        "" if same else f"{ours['p50'] / cell['p50']:.2f}",
        "" if same else f"{ours['requests_per_second'] / cell['requests_per_second']:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
