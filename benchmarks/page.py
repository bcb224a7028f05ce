"""How long does each page of the service take, and how large is it, with much to show?

`python -m benchmarks.page` fills SQLite and PostgreSQL (a temporary server) with a model of a thousand versions and a
hundred thousand jobs, and asks for each page, through all of the service's layers in this process, without a socket. An
empty page through the same layers is the limit: what is above it are queries, view models and the template.
"""

import argparse
import asyncio
import gzip
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr

from benchmarks.command_line import OneLineParser, add_out, count, log_progress, publish, table
from benchmarks.control.databases import NAMES, fresh_database, spread
from benchmarks.control.large_model import (
    MODEL,
    NOW,
    Size,
    candidate,
    dataset_id,
    fill,
    job_id,
    judged_number,
    running_number,
)
from benchmarks.report import machine
from cmcl.contract.api.endpoint import (
    Collection,
    CollectionList,
    ItemsResponse,
    SearchStatus,
    StoredItem,
)
from cmcl.contract.responses import ApiModel
from cmcl.storage import layout
from service.app import Parts, create_app
from service.core.settings import Settings
from service.launchers.port import LaunchStatus, Submission
from service.page.endpoint import Endpoint
from service.page.rendering import PREFIX, pages_of

GOAL_MS, GOAL_BYTES = 100, 150_000

EMPTY = f"{PREFIX}/empty"
# Answered without an HTML document: a stream that does not end, files, redirects.
NO_PAGES = frozenset(
    f"{PREFIX}/{path}"
    for path in (
        "stream",
        "static/{digest}/{name}",
        # A file to save, and one for scripts.
        "models/{model}/versions/{version}/manifest",
        "v1/uploads/{upload}",
    )
)
# Not a secret: of a service that exists for a minute.
_KEY = "operator-of-the-benchmark-0123456789"
_ORIGIN = "http://localhost"
_ENDPOINT, _COLLECTION = "http://embeddings.internal:8001", "pictures"
_WARM_UP = 3
_LIVE_PART = re.compile(r'id="(live_\w+)"')
_PARAMETER = re.compile(r"{(\w+)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    size = Size(options.versions, options.datasets, options.jobs)
    found: dict[str, Any] = {"size": vars(size), "databases": {}, "machine": machine()}
    for name in NAMES:
        log_progress(f"pages on {name}")
        with tempfile.TemporaryDirectory() as folder, fresh_database(name, Path(folder)) as url:
            app = create_large_app(url, Path(folder), size)
            try:
                found["databases"][name] = document(measure_pages(app, size, options.repeats))
            finally:
                app.state.context.close()
    publish(options, "page", markdown(found), found)
    return 0


def markdown(found: Mapping[str, Any]) -> str:
    """Render the page."""
    size = found["size"]
    explained = (
        f"One model with {size['versions']:,} versions, each measured on {size['datasets']:,} datasets, and "
        f"{size['jobs']:,} jobs. Requests pass all layers of the service in one process, one after another, without "
        "a socket. *ratio*: to an empty page through the same layers in the same run. *live*: a request for all "
        "parts of an open page that change. *bytes*: of the document, before and after compression. Goals: a "
        f"median under {GOAL_MS} ms, and under {GOAL_BYTES:,} bytes."
    )
    machine_facts = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    parts = ["# Pages of the service", f"Machine: {machine_facts}.", explained]
    head = ("page", "p50 ms", "p95 ms", "ratio", "live p50 ms", "bytes", "compressed")
    for name, measured in found["databases"].items():
        parts += [f"## {name}", table(head, [_row(page) for page in measured["pages"]])]
    return "\n\n".join(parts) + "\n"


def _row(page: Mapping[str, Any]) -> list[str]:
    live = page["live"]
    return [
        f"`{page['path']}`",
        *(f"{page['whole'][key]:.1f}" for key in ("p50_ms", "p95_ms")),
        f"{page['ratio']:.1f}",
        f"{live['p50_ms']:.1f}" if live else "–",
        *(f"{page[key]:,}" for key in ("bytes", "compressed")),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.page", description=__doc__)
    default = Size()
    parser.add_argument("--versions", type=count, default=default.versions)
    parser.add_argument("--datasets", type=count, default=default.datasets)
    parser.add_argument("--jobs", type=count, default=default.jobs)
    parser.add_argument(
        "--repeats", type=count, default=30, help="requests for each page (default: 30)"
    )
    add_out(parser)
    return parser


@dataclass(frozen=True)
class Page:
    """A page and its figures. `live` is a request for all of its live parts; None if it has none."""

    path: str
    bytes: int
    compressed: int
    whole: Mapping[str, float]
    live: Mapping[str, float] | None


class _NoCluster:
    """A launcher for pages, which read logs of attempts and nothing else from it."""

    def submit(self, submission: Submission) -> None:
        """See the port."""

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        return {}

    def stop(self, submission_id: str) -> None:
        """See the port."""

    def log(self, submission_id: str) -> str:
        """See the port."""
        return ""

    def forget(self, submission_id: str) -> None:
        """See the port."""

    def resources(self) -> None:
        """See the port."""


def create_large_app(url: str, folder: Path, size: Size) -> FastAPI:
    """The service on a filled database, with one route more: an empty page. Its loops do not run."""
    settings = Settings(
        database_url=url,
        store_uri=(folder / "store").as_uri(),
        auth="on",
        admin_key=SecretStr(_KEY),
    )
    parts = Parts(launcher=_NoCluster(), clock=lambda: NOW)
    app = create_app(settings, parts)
    app.state.endpoint = Endpoint(_ENDPOINT, None, httpx.MockTransport(_of_endpoint))
    fill(app.state.context.database, size)
    found = candidate(size)
    key = layout.run_candidate(found.job, found.attempt)
    app.state.context.store.put(key, found.model_dump_json().encode())

    def empty(request: Request) -> Response:
        return pages_of(request).render(request, "base.html")

    app.state.page.add_api_route(EMPTY, empty, methods=["GET"])
    return app


def _of_endpoint(request: httpx.Request) -> httpx.Response:
    """What an endpoint with a hundred collections would answer."""
    searched = SearchStatus(problem=None, version=1, revision=7, rows={"image": 5_000})
    one = Collection(
        id=_COLLECTION,
        object="collection",
        model=MODEL,
        feature_type="float32",
        vector_type="float32",
        dimensions=None,
        text_fields=[],
        revision=7,
        created=1,
        changed=2,
        damaged=None,
        searched=searched,
    )
    payload = {"caption": "a tram at dawn", "year": 2026}
    answer: ApiModel = ItemsResponse(
        object="list",
        data=[
            StoredItem(id=f"item-{number}", modality="image", payload=payload)
            for number in range(50)
        ],
        model=f"{MODEL}@1",
        revision=7,
        rows=5_000,
        next_offset=50,
    )
    if request.url.path == "/v1/collections":
        answer = CollectionList(object="list", data=[one] * 100, damaged=[])
    elif request.url.path == f"/v1/collections/{_COLLECTION}":
        answer = one
    return httpx.Response(200, json=answer.model_dump(mode="json"))


def values_of(path: str, size: Size) -> dict[str, str]:
    """Parameters of a page, at their largest: the newest version, and a job that runs or has a candidate."""
    is_candidate = path.endswith("/{job}")
    return {
        "model": MODEL,
        "version": str(size.versions),
        "dataset": dataset_id(size.versions),
        "job": job_id(judged_number(size) if is_candidate else running_number(size)),
        "attempt": "1",
        "collection": _COLLECTION,
    }


def page_paths(app: FastAPI) -> list[str]:
    """Path of each page, with its parameters in braces."""
    contexts = iter_route_contexts(app.state.page.routes)
    paths = {each.path for each in contexts if each.path and "GET" in (each.methods or ())}
    return sorted(paths - NO_PAGES)


def _address(path: str, size: Size) -> str:
    """Address of a page. Raises KeyError for a parameter without a value."""
    values = values_of(path, size)
    queries = {
        "promote": f"?version={size.versions - 1}",
        "compare": f"?before={size.versions // 2}&after={size.versions}",
    }
    query = queries.get(path.rpartition("/")[2], "")
    return _PARAMETER.sub(lambda match: values[match[1]], path) + query


def measure_pages(app: FastAPI, size: Size, repeats: int) -> list[Page]:
    """Ask for each page several times, one request after another."""
    return asyncio.run(_measured(app, size, repeats))


async def _measured(app: FastAPI, size: Size, repeats: int) -> list[Page]:
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(
        transport=transport, base_url=_ORIGIN, headers={"accept-encoding": "identity"}
    )
    async with client:
        await _sign_in(client)
        pages = [
            await _page(client, path, _address(path, size), repeats) for path in page_paths(app)
        ]
        return [page for page in pages if page is not None]


async def _sign_in(client: httpx.AsyncClient) -> None:
    headers = {"origin": _ORIGIN, "sec-fetch-site": "same-origin"}
    response = await client.post(f"{PREFIX}/login", data={"key": _KEY}, headers=headers)
    if not response.is_redirect or not client.cookies:
        raise RuntimeError(f"signing in failed: {response.status_code} {response.text[:500]}")


async def _page(client: httpx.AsyncClient, path: str, address: str, repeats: int) -> Page | None:
    """None for a page that sends someone who is signed in elsewhere."""
    response = await client.get(address)
    if response.is_redirect:
        return None
    if response.status_code != 200:
        raise RuntimeError(f"GET {address}: {response.status_code} {response.text[:500]}")
    parts = _LIVE_PART.findall(response.text)
    sign = "&" if "?" in address else "?"
    live = f"{address}{sign}{'&'.join(f'fragment={part}' for part in parts)}" if parts else None
    return Page(
        path=path,
        bytes=len(response.content),
        compressed=len(gzip.compress(response.content, 5)),
        whole=spread(await _seconds(client, address, repeats)),
        live=spread(await _seconds(client, live, repeats)) if live else None,
    )


async def _seconds(client: httpx.AsyncClient, address: str, repeats: int) -> list[float]:
    found, warm_up = [], min(_WARM_UP, repeats - 1)
    for _ in range(warm_up + repeats):
        began = time.perf_counter()
        response = await client.get(address)
        found.append(time.perf_counter() - began)
        response.raise_for_status()
    return found[warm_up:]


def document(pages: list[Page]) -> dict[str, Any]:
    """The pages, slowest first, each with the ratio of its median to that of the empty page."""
    limit = next(page for page in pages if page.path == EMPTY).whole["p50_ms"]
    ordered = sorted(pages, key=lambda page: -page.whole["p50_ms"])
    return {
        "limit_ms": limit,
        "pages": [
            {**vars(page), "ratio": round(page.whole["p50_ms"] / limit, 1)} for page in ordered
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
