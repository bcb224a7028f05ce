"""An embeddings endpoint of prepared answers, as the page of the control plane asks it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from cmcl.contract.api.endpoint import (
    Collection,
    HeldOutHit,
    HeldOutResults,
    SearchHit,
    SearchResults,
    SearchStatus,
)
from tests.fakes.responses import body

Answer = dict[str, Any] | httpx.Response | Callable[[httpx.Request], httpx.Response]


@dataclass
class FakeEndpoint:
    """Answers by method and path; records every request. With `down`, no connection is accepted."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[httpx.Request] = field(default_factory=list)
    down: bool = False

    @property
    def transport(self) -> httpx.MockTransport:
        """What an `Endpoint` sends through."""
        return httpx.MockTransport(self._answer)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """Bodies that were sent to a path."""
        sent = [request for request in self.asked if request.url.path == path]
        return [json.loads(request.content) for request in sent]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        answer = self.answers.get(f"{request.method} {request.url.path}")
        if answer is None:
            return error(404, f"there is no {request.url.path}")
        if callable(answer):
            return answer(request)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def error(status: int, message: str) -> httpx.Response:
    """An error in the endpoint's form."""
    return httpx.Response(status, json={"error": {"message": message, "code": "x"}})


def collection(name: str, model: str = "scenes", **changes: object) -> dict[str, object]:
    """A collection as the endpoint describes it."""
    rows = {"image": 30, "text": 12}
    searched = body(SearchStatus, version=2, revision=7, rows=rows)
    shown = {"id": name, "model": model, "revision": 7, "searched": searched}
    return body(Collection, **shown | changes)


def found(model: str, *ids: str, **more: object) -> dict[str, object]:
    """Hits of a search, with falling scores: of held-out rows if `more` has `rows`, else of a collection."""
    results, hit = (HeldOutResults, HeldOutHit) if "rows" in more else (SearchResults, SearchHit)
    hits = [
        body(hit, id=name, modality="image", score=0.9 - index / 100, row=100 + index)
        if hit is HeldOutHit
        else body(hit, id=name, modality="image", score=0.9 - index / 100)
        for index, name in enumerate(ids)
    ]
    return body(results, data=hits, model=model, **{"exact": True, **more})
