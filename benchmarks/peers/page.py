"""Markdown page of `benchmarks.serving`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

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
- *wrapped* (with `--wrapped`): the bare application as a replica of Ray Serve behind HAProxy
  (`benchmarks/peers/wrapped.py`), which shows the cost of these two.
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
    words = (
        "Upper bounds: rows per second of the models alone, in a tight loop with one thread; the "
        "clients alone, with a server that does nothing: "
        f"{document['clients_alone_per_second']:,.0f} requests per second."
    )
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
    for (rows, clients), servers in by_place.items():
        for name, cell in servers.items():
            lines.append([str(rows), str(clients), *_cells(name, cell, servers["ours"])])
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
