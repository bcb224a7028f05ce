"""Every route of the control plane, the scope it needs, and a valid body."""

from dataclasses import dataclass, field

from service.core.principal import Scope

READ, WRITE, TRAIN, ADMIN = Scope.READ, Scope.WRITE, Scope.TRAIN, Scope.ADMIN
_SHARDS = {"shards": [{"uri": "file:///nowhere/x.parquet"}]}
_PAIR = {"first": "image", "second": "text"}


@dataclass(frozen=True)
class Wanted:
    """The scope of a route (None: any key), and a valid body."""

    scope: Scope | None
    body: dict[str, object] = field(default_factory=dict)
    raw: bytes | None = None

    @property
    def options(self) -> dict[str, object]:
        """Options of the request."""
        if self.raw is not None:
            return {"content": self.raw, "headers": {"Content-Type": "application/octet-stream"}}
        return {"json": self.body} if self.body else {}


ROUTES: dict[str, Wanted] = {
    "GET /v1/whoami": Wanted(None),
    "GET /v1/quotas": Wanted(READ),
    "POST /v1/models": Wanted(WRITE, {"name": "x", "width": 8, "modalities": {"a": 4, "b": 3}}),
    "GET /v1/models": Wanted(READ),
    "GET /v1/models/{model}": Wanted(READ),
    "DELETE /v1/models/{model}": Wanted(ADMIN),
    "POST /v1/models/{model}/branch": Wanted(WRITE, {"name": "x-branch", "version": 1}),
    "PUT /v1/models/{model}/modalities/{modality}": Wanted(WRITE, {"width": 4}),
    "POST /v1/models/{model}/merge": Wanted(TRAIN, {"from": "y@1"}),
    "GET /v1/models/{model}/gate": Wanted(READ),
    "PUT /v1/models/{model}/gate": Wanted(TRAIN, {"max_drift": 0.5}),
    "GET /v1/models/{model}/versions": Wanted(READ),
    "GET /v1/models/{model}/versions/{version}": Wanted(READ),
    "DELETE /v1/models/{model}/versions/{version}": Wanted(ADMIN),
    "GET /v1/models/{model}/live": Wanted(READ),
    "PUT /v1/models/{model}/live": Wanted(TRAIN, {"version": 1}),
    "GET /v1/models/{model}/capacity": Wanted(READ),
    "GET /v1/models/{model}/history": Wanted(READ),
    "GET /v1/models/{model}/summary": Wanted(READ),
    "GET /v1/overview": Wanted(READ),
    "POST /v1/models/{model}/rollback": Wanted(TRAIN, {"reason": "x"}),
    "GET /v1/models/{model}/promotions": Wanted(READ),
    "POST /v1/datasets": Wanted(WRITE, {"model": "x", "name": "x", "pair": _PAIR, **_SHARDS}),
    "GET /v1/datasets": Wanted(READ),
    "GET /v1/datasets/{dataset}": Wanted(READ),
    "GET /v1/datasets/{dataset}/rejected-rows": Wanted(READ),
    "POST /v1/datasets/{dataset}/shards": Wanted(WRITE, {**_SHARDS}),
    "POST /v1/datasets/{dataset}/seal": Wanted(WRITE),
    "DELETE /v1/datasets/{dataset}": Wanted(WRITE),
    "GET /v1/encoders": Wanted(READ),
    "POST /v1/uploads": Wanted(WRITE, {"filename": "x.parquet", "bytes": 10}),
    "GET /v1/uploads/{upload}": Wanted(READ),
    "PUT /v1/uploads/{upload}/file": Wanted(WRITE, raw=b"0123456789"),
    "DELETE /v1/uploads/{upload}": Wanted(WRITE),
    "GET /v1/jobs": Wanted(READ),
    "GET /v1/jobs/{job}": Wanted(READ),
    "GET /v1/jobs/{job}/events": Wanted(READ),
    "GET /v1/jobs/{job}/attempts": Wanted(READ),
    "GET /v1/jobs/{job}/candidate": Wanted(READ),
    "GET /v1/jobs/{job}/log": Wanted(READ),
    "GET /v1/jobs/{job}/phases": Wanted(READ),
    "GET /v1/jobs/{job}/progress": Wanted(READ),
    "POST /v1/jobs/{job}/cancel": Wanted(TRAIN),
    "POST /v1/jobs/{job}/retry": Wanted(TRAIN),
    "POST /v1/jobs/{job}/approve": Wanted(TRAIN, {"reason": "x"}),
    "POST /v1/jobs/{job}/reject": Wanted(TRAIN, {"reason": "x"}),
    "GET /v1/events": Wanted(READ),
    "POST /v1/webhooks": Wanted(ADMIN, {"url": "https://example.com/hook"}),
    "GET /v1/webhooks": Wanted(ADMIN),
    "GET /v1/webhooks/{webhook}": Wanted(ADMIN),
    "DELETE /v1/webhooks/{webhook}": Wanted(ADMIN),
    "GET /v1/webhooks/{webhook}/deliveries": Wanted(ADMIN),
    "POST /v1/webhooks/{webhook}/test": Wanted(ADMIN),
    "POST /v1/keys": Wanted(ADMIN, {"name": "x", "scopes": ["admin"]}),
    "GET /v1/keys": Wanted(ADMIN),
    "GET /v1/keys/{key}": Wanted(ADMIN),
    "DELETE /v1/keys/{key}": Wanted(ADMIN),
}

ABOUT_ONE_THING = [route for route in ROUTES if "{" in route]
LISTS = [
    route
    for route, wanted in ROUTES.items()
    if route.startswith("GET") and "{" not in route and wanted.scope
]
# A stream of events would go on until its job ends, and that has ended; a published job has no candidate.
_NOT_OF_AN_ENDED_JOB = {"GET /v1/jobs/{job}/events", "GET /v1/jobs/{job}/candidate"}
READABLE = [
    route
    for route in ABOUT_ONE_THING
    if route.startswith("GET") and route not in _NOT_OF_AN_ENDED_JOB
]
