"""Every operation of the API and of the page, the scopes that it needs by rule, and a body that is valid.

An operation is a method and a path, as the running apps list them: a new one is tested without a line here, unless it
needs another scope than the rules say, or a body.
"""

import re
from collections.abc import Iterator, Mapping

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from cmcl.contract.api.access import Scope
from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import submission_id
from cmcl.storage import layout
from service.api.dependencies import OPEN_PATHS
from tests.fakes.control_plane import ControlPlane
from tests.fakes.trainer import train
from tests.unit.service.auth.key_client import KeyClient

READ, WRITE, TRAIN, ADMIN, EMBED = (
    *(Scope.READ, Scope.WRITE, Scope.TRAIN),
    *(Scope.ADMIN, Scope.EMBED),
)

# Without a key: probes, the API's description, and what leads to a session.
OPEN = re.compile(
    r"GET /docs/\{file\}|GET /ui/(static/\{digest\}/\{name\}|login)|POST /ui/log(in|out)"
)
# What any key or session may do.
_ANY = re.compile(r"GET /v1/whoami|(GET|POST) /ui/sessions.*")
# Scopes of an operation: those of the first rule that matches.
_RULES: list[tuple[str, set[Scope]]] = [
    (r"\w+ /v1/(keys|webhooks).*", {ADMIN}),
    (r"DELETE /v1/models/.*", {ADMIN}),
    (
        r"\w+ /ui/(jobs/\{job\}/(cancel|retry|approve|reject)|models/\{model\}/(promote|rollback))",
        {READ, TRAIN},
    ),
    (
        r"POST /v1/jobs/.*|PUT /v1/models/\{model\}/(gate|live)|POST /v1/.*/(rollback|merge|erase)",
        {TRAIN},
    ),
    (
        r"\w+ /ui/(datasets/\{dataset\}/repair|models/\{model\}/post|new|sample)",
        {READ, WRITE},
    ),
    (r"POST /ui/try/file", {READ, EMBED}),
    (r"GET .*", {READ}),
    (r"(POST|PUT|DELETE) /(v1|ui/v1)/(models|datasets|uploads).*", {WRITE}),
]

_SHARDS = {"shards": [{"uri": "file:///nowhere/x.parquet"}]}
_MODEL = {"name": "x", "width": 8, "modalities": {"a": 4, "b": 3}}
_PAIR = {"first": "image", "second": "text"}
_REASON = {"reason": "x"}
_DECISION = {"seen": "0", **_REASON}
BODIES: Mapping[str, Mapping[str, object]] = {
    "POST /v1/models": _MODEL,
    "POST /v1/models/{model}/branch": {"name": "x-branch", "version": 1},
    "PUT /v1/models/{model}/modalities/{modality}": {"width": 4},
    "POST /v1/models/{model}/merge": {"from": "y@1"},
    "PUT /v1/models/{model}/gate": {"max_drift": 0.5},
    "PUT /v1/models/{model}/live": {"version": 1},
    "POST /v1/models/{model}/rollback": _REASON,
    "POST /v1/datasets": {"model": "x", "name": "x", "pair": _PAIR, **_SHARDS},
    "POST /v1/datasets/{dataset}/shards": _SHARDS,
    "POST /v1/datasets/{dataset}/erase": {"features": {"image": [1.0], "text": [1.0]}},
    "POST /v1/uploads": {"filename": "x.parquet", "bytes": 10},
    "POST /v1/jobs/{job}/approve": _REASON,
    "POST /v1/jobs/{job}/reject": _REASON,
    "POST /v1/webhooks": {"url": "https://example.com/hook"},
    "POST /v1/keys": {"name": "x", "scopes": ["admin"]},
}
FORMS: Mapping[str, Mapping[str, object]] = {
    "POST /ui/new": {
        "name": "x-new",
        "modality": ["a", "b"],
        "encoder": ["", ""],
        "width": ["4", "3"],
    },
    "POST /ui/jobs/{job}/cancel": {"seen": "0"},
    "POST /ui/jobs/{job}/retry": {"seen": "0"},
    "POST /ui/jobs/{job}/approve": _DECISION,
    "POST /ui/jobs/{job}/reject": _DECISION,
    "POST /ui/models/{model}/promote": {"seen": "0", "version": "1"},
    "POST /ui/models/{model}/rollback": {"seen": "0"},
    "POST /ui/models/{model}/post": {
        "name": "x",
        "first": "image",
        "second": "text",
        "uploads": "up-0123456789ab",
    },
    "POST /ui/try/file": {"x": "y"},
}
_QUERIES = {
    "GET /ui/models/{model}/promote": "?version=1",
    "GET /ui/models/{model}/compare": "?before=1&after=1",
    "GET /v1/events": "?limit=200",
}
# Their objects are the endpoint's, which decides what an owner may see.
ELSEWHERE = {"GET /ui/collections/{collection}"}
# They go on until their job ends.
STREAMS = {"GET /v1/jobs/{job}/events", "GET /ui/stream"}
# Parts of paths that are the same for every owner.
OF_NO_OWNER = {"version": "1", "modality": "x", "collection": "x", "session": "s-000000000000"}


def operations(app: FastAPI) -> list[str]:
    """All operations of an app that need a key or a session."""
    found = {
        f"{method} {context.path}"
        for context in iter_route_contexts(app.routes)
        for method in context.methods or ()
        if context.path not in OPEN_PATHS
    }
    return sorted(each for each in found if not OPEN.fullmatch(each))


def scopes(operation: str) -> set[Scope]:
    """The scopes that an operation needs; empty: any key. Raises KeyError without a rule."""
    if _ANY.fullmatch(operation):
        return set()
    for rule, needed in _RULES:
        if re.fullmatch(rule, operation):
            return needed
    raise KeyError(operation)


def address(operation: str, things: Mapping[str, str]) -> str:
    """The path of an operation with the names of things in it, and its query."""
    path = operation.partition(" ")[2]
    job = "held" if path.endswith(("approve", "reject", "log", "candidate")) else "job"
    return path.format(**{**things, "job": things[job]}) + _QUERIES.get(operation, "")


def options(operation: str) -> dict[str, object]:
    """Options of a request whose body is valid."""
    if operation.endswith("/uploads/{upload}/file"):
        octets = {"Content-Type": "application/octet-stream"}
        return {"content": b"0123456789", "headers": octets}
    if operation.startswith("POST /ui/"):
        return {"data": FORMS.get(operation, {})}
    return {"json": BODIES[operation]} if operation in BODIES else {}


def documents(page: FastAPI) -> Iterator[str]:
    """Operations of the page that show a document."""
    for operation in operations(page):
        is_file = operation.endswith("/manifest") or "/ui/v1/" in operation
        if operation.startswith("GET") and operation not in STREAMS and not is_file:
            yield operation


def make_things(plane: ControlPlane, client: KeyClient, model: str) -> dict[str, str]:
    """Create one object of each kind, by its name in paths: two versions, a failed job, and one that is held."""
    plane.client = client
    plane.create_model(model)
    for name in ("one", "two"):
        plane.run_to_end(plane.post_dataset(name, model))
    job = plane.post_dataset("broken", model, shards=[{"uri": plane.shard("x")["uri"] + "x"}])
    plane.tick(3)
    held = hold_candidate(plane, model)
    things = {"model": model, "job": job, "held": held, **OF_NO_OWNER}
    posted = {
        "dataset": ("/v1/datasets", plane.dataset_body("open", model, sealed=False)),
        "upload": ("/v1/uploads", {"filename": f"{model}.parquet", "bytes": 10}),
        "webhook": ("/v1/webhooks", {"url": f"https://example.com/{model}"}),
        "key": ("/v1/keys", {"name": model, "scopes": ["read"]}),
    }
    for name, (path, body) in posted.items():
        answer = client.post(path, json=body)
        assert answer.status_code < 300, answer.text
        made = answer.json()
        things[name] = made["dataset"]["id"] if name == "dataset" else made["id"]
    client.post(f"/v1/webhooks/{things['webhook']}/test")
    return things


def hold_candidate(plane: ControlPlane, model: str) -> str:
    """A job whose candidate waits for approval."""
    gate = {"manual_approval": True}
    assert plane.client.put(f"/v1/models/{model}/gate", json=gate).status_code == 200
    job = plane.post_dataset("held", model)
    plane.launcher.logs[submission_id(job, 1)] = "trained\n"
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.store.put(layout.run_log(job, 1), b"rank 0: 40 updates\n")
    plane.tick_to(job, JobState.HELD)
    return job
