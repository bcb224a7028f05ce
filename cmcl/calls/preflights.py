"""Pre-flights: what a dataset would meet before it is posted."""

from collections.abc import Sequence

from cmcl.calls.datasets import Pair, as_pair
from cmcl.calls.shards import OnUpload, ShardSource, Uploading, UploadMode, post_with_shards
from cmcl.errors import TookTooLong
from cmcl.flow.api import Api, segment
from cmcl.flow.effects import Flow, Items, Pause
from cmcl.types import Preflight


def ask_preflight(
    api: Api,
    model: str,
    pair: Pair,
    shards: Sequence[ShardSource],
    *,
    upload: UploadMode = "auto",
    on_upload: OnUpload | None = None,
) -> Flow[Preflight]:
    """Ask what a dataset would meet; nothing is trained or kept of it. See `await_preflight`."""
    path = f"/v1/models/{segment(model)}/preflight"
    body = {"pair": as_pair(pair).model_dump()}
    return post_with_shards(
        api,
        {"shards": shards},
        lambda lists: api.post(Preflight, path, {**body, **lists}),
        Uploading(upload, on_upload),
    )


def preflight(api: Api, preflight: str) -> Flow[Preflight]:
    """One pre-flight; its `outlook` once there is one."""
    return api.get(Preflight, f"/v1/preflights/{segment(preflight)}")


def preflights(api: Api, model: str) -> Items[Preflight]:
    """Pre-flights of a model in the order of their arrival."""
    return api.pages(Preflight, f"/v1/models/{segment(model)}/preflights")


def await_preflight(
    api: Api, preflight_id: str, timeout: float = 600.0, poll_seconds: float = 0.5
) -> Flow[Preflight]:
    """Until there is an answer, or there will be none. Raises TookTooLong after `timeout` seconds."""
    deadline = api.clock() + timeout
    while True:
        now = yield from preflight(api, preflight_id)
        if now.has_ended:
            return now
        if api.clock() >= deadline:
            raise TookTooLong(f"pre-flight {preflight_id} has no answer after {timeout:g} seconds")
        yield Pause(poll_seconds)
