"""The page of `benchmarks.serving`, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import listed, table

_QUESTION = (
    "How fast does the endpoint answer, beside the same products in bare FastAPI and uvicorn, and "
    "beside Infinity with a model of comparable cost? What share of the products' own rate is left?"
)
_SERVERS = """\
- *ours*: the whole of it: Ray Serve behind HAProxy, one replica, as `make up` runs it; versions,
  limits, checks of every row, metrics.
- *bare*: one process of FastAPI and uvicorn, a pydantic model, the same heads
  (`benchmarks/peers/bare.py`); one version, no limits, no checks, no metrics.
- *wrapped*, where it was asked for: the same application as a replica of Ray Serve behind HAProxy, as
  ours is (`benchmarks/peers/wrapped.py`): what these two cost, whatever they wrap.
- *Infinity*: infinity-emb on torch, batches of up to 256, one thread. It takes texts, so each row is
  one word, a few bytes where ours are asked for 1024 numbers; its model is a table and two linear maps
  of the same width: the products of a conditioned head. It has no binary form.

Clients ask, wait for the whole answer, and ask again; they live in one process beside the server, and
both share the machine's cores. Every answer's status is checked; of each different request one answer
in full. JSON: numbers both ways. base64: float32 as base64 in JSON, both ways; Infinity is asked for
texts in either. binary: raw float32 both ways."""
_UNIT = (
    "p50 and p95 in ms. Ratios: ours / peer of p50 (smaller is better) and of requests a second."
)


def markdown(document: Mapping[str, Any]) -> str:
    """Question, machine, configuration, result."""
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
        "The limits. Rows a second of the models alone, one thread, in a tight loop; the clients alone, "
        f"at a server that does nothing: {document['clients_alone_per_second']:,.0f} requests a second."
    )
    return (
        f"{words}\n\n{table(('rows at once', 'our heads', 'the model that Infinity serves'), rows)}"
    )


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
