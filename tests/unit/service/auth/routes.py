"""Every route of the control plane, the scope it needs, and a body that it would take."""

from dataclasses import dataclass, field

from service.principal import Scope

READ, WRITE, TRAIN, ADMIN = Scope.READ, Scope.WRITE, Scope.TRAIN, Scope.ADMIN
_SHARDS = {"shards": [{"uri": "file:///nowhere/x.parquet"}]}
_PAIR = {"first": "image", "second": "text"}


@dataclass(frozen=True)
class Wanted:
    """What a route needs; no scope: any key will do."""

    scope: Scope | None
    body: dict[str, object] = field(default_factory=dict)
    raw: bytes | None = None

    @property
    def options(self) -> dict[str, object]:
        """For a request."""
        if self.raw is not None:
            return {"content": self.raw, "headers": {"Content-Type": "application/octet-stream"}}
        return {"json": self.body} if self.body else {}


ROUTES: dict[str, Wanted] = {
    "GET /v1/whoami": Wanted(None),
    "POST /v1/models": Wanted(WRITE, {"name": "x", "width": 8, "modalities": {"a": 4, "b": 3}}),
    "GET /v1/models": Wanted(READ),
    "GET /v1/models/{model}": Wanted(READ),
    "DELETE /v1/models/{model}": Wanted(ADMIN),
    "POST /v1/models/{model}/branch": Wanted(WRITE, {"name": "x-branch", "version": 1}),
    "GET /v1/models/{model}/policy": Wanted(READ),
    "PUT /v1/models/{model}/policy": Wanted(TRAIN, {"max_drift": 0.5}),
    "GET /v1/models/{model}/versions": Wanted(READ),
    "GET /v1/models/{model}/versions/{version}": Wanted(READ),
    "DELETE /v1/models/{model}/versions/{version}": Wanted(ADMIN),
    "GET /v1/models/{model}/live": Wanted(READ),
    "PUT /v1/models/{model}/live": Wanted(TRAIN, {"version": 1}),
    "GET /v1/models/{model}/candidate": Wanted(READ),
    "PUT /v1/models/{model}/candidate": Wanted(TRAIN, {"version": 1, "share": 0.1}),
    "DELETE /v1/models/{model}/candidate": Wanted(TRAIN),
    "POST /v1/models/{model}/rollback": Wanted(TRAIN, {"reason": "x"}),
    "GET /v1/models/{model}/promotions": Wanted(READ),
    "POST /v1/models/{model}/preflight": Wanted(TRAIN, {"pair": _PAIR, **_SHARDS}),
    "GET /v1/models/{model}/preflights": Wanted(READ),
    "GET /v1/preflights/{preflight}": Wanted(READ),
    "POST /v1/datasets": Wanted(WRITE, {"model": "x", "name": "x", "pair": _PAIR, **_SHARDS}),
    "GET /v1/datasets": Wanted(READ),
    "GET /v1/datasets/{dataset}": Wanted(READ),
    "POST /v1/datasets/{dataset}/shards": Wanted(WRITE, {**_SHARDS}),
    "POST /v1/datasets/{dataset}/seal": Wanted(WRITE),
    "DELETE /v1/datasets/{dataset}": Wanted(WRITE),
    "POST /v1/uploads": Wanted(WRITE, {"filename": "x.parquet", "bytes": 10}),
    "GET /v1/uploads/{upload}": Wanted(READ),
    "PUT /v1/uploads/{upload}/parts/{number}": Wanted(WRITE, raw=b"0123456789"),
    "POST /v1/uploads/{upload}/complete": Wanted(WRITE),
    "POST /v1/uploads/{upload}/presign": Wanted(WRITE),
    "DELETE /v1/uploads/{upload}": Wanted(WRITE),
    "GET /v1/jobs": Wanted(READ),
    "GET /v1/jobs/{job}": Wanted(READ),
    "GET /v1/jobs/{job}/events": Wanted(READ),
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
# A stream of events would go on until its job ends, and that has ended.
READABLE = [
    route
    for route in ABOUT_ONE_THING
    if route.startswith("GET") and route != "GET /v1/jobs/{job}/events"
]
