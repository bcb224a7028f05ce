"""`GET /v1/models`: models and their versions, in OpenAI's shape with further fields."""

from collections.abc import Mapping

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from workers.serve.api.context import (
    TIMEOUT,
    Replica,
    authorization_of,
    cancel_on_disconnect,
    read_context,
)
from workers.serve.api.openapi import KEY, WAIT, operation
from workers.serve.api.wire.formats import JSON
from workers.serve.api.wire.responses import Model, ModelList
from workers.serve.encoders.port import EncoderInfo
from workers.serve.errors import NotFound
from workers.serve.migration import Changes, Compatibilities
from workers.serve.versions.live import LiveModel, Refusal
from workers.serve.versions.loading import ServedVersion
from workers.serve.versions.lookup import parse_reference

# OpenAI's clients require an owner.
_NOBODY = "cmcl"


def router(replica: Replica) -> APIRouter:
    """The routes of this replica."""
    made = APIRouter(tags=["models"])
    models = _Models(replica)
    made.get("/v1/models", **operation("list_models", ModelList, KEY))(models.list_models)
    one = operation("read_model", Model, WAIT, parameters=[TIMEOUT])
    made.get("/v1/models/{model}", **one)(models.one_model)
    return made


class _Models:
    """Answers from memory; only a version that is named exactly may have to be loaded."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._compatibilities = Compatibilities(replica.store, replica.compute)

    async def list_models(self, request: Request) -> Response:
        """List models: versions, canaries, modalities, and whether stored vectors still fit."""
        caller = self._replica.access.authenticate(authorization_of(request.headers))
        data = [
            self._described(name, live, live.version)
            for name, live in sorted(self._replica.live.all().items())
            if caller.sees(live.owner)
        ]
        return _json({"object": "list", "data": data})

    async def one_model(self, request: Request, model: str) -> Response:
        """Show one model, by its name or as name@version."""
        context = read_context(request, self._replica)
        caller, wanted = context.caller, parse_reference(model)
        exact = None
        if wanted.version is not None:
            async with cancel_on_disconnect(request, context):
                exact = (await self._replica.lookup.find(wanted, 0, caller)).version
        live = self._replica.live.get(wanted.name)
        if live is None or not caller.sees(live.owner):
            raise NotFound(f"there is no model {wanted.name!r} with a live version", "model")
        return _json(self._described(model, live, exact or live.version))

    def _described(self, name: str, live: LiveModel, version: ServedVersion) -> dict[str, object]:
        resident = self._replica.lookup.resident(version.model)
        return {
            "id": name,
            "object": "model",
            "created": int(version.created_at.timestamp()),
            "owned_by": live.owner or _NOBODY,
            "version": version.number,
            "generation": live.generation,
            "width": version.spec.width,
            "dimensions": [version.spec.width],
            "modalities": version.spec.modalities,
            "pairs": sorted(pair.key for pair in version.pairs),
            "encoders": _encoders(self._replica.encoders.infos, version),
            "versions": {
                "resident": sorted(each.number for each in resident),
                "lineage": list(live.version.lineage),
                "retired": list(live.retired),
            },
            "channels": _channels(live),
            "compatibility": self._compatibility(live.version, resident),
            "refusals": [
                self._refusal(each) for each in self._replica.live.refusals(version.model)
            ],
        }

    def _compatibility(
        self, live: ServedVersion, resident: list[ServedVersion]
    ) -> dict[str, Changes | None]:
        """Changes by number of each version in memory; None until it is computed."""
        others = sorted((each for each in resident if each != live), key=lambda each: each.number)
        return {str(each.number): self._compatibilities.known(each, live) for each in others}

    def _refusal(self, refusal: Refusal) -> dict[str, object]:
        """A refusal without the store's address, which callers must not see."""
        return {
            "version": refusal.version,
            "generation": refusal.generation,
            "kind": refusal.kind,
            "reason": refusal.reason.replace(f"{self._replica.store.uri}/", ""),
            "failures": refusal.failures,
        }


def _encoders(infos: Mapping[str, EncoderInfo], version: ServedVersion) -> dict[str, object]:
    """Encoders whose features the heads can read, by modality."""
    return {
        modality: {"name": info.name, "takes": info.raw}
        for modality, info in infos.items()
        if version.spec.modalities.get(modality) == info.width
    }


def _channels(live: LiveModel) -> dict[str, object]:
    candidate = None
    if live.canary is not None:
        candidate = {
            "version": live.canary.version,
            "share": live.canary.share,
            "shadow": live.canary.shadow,
            "loaded": live.candidate is not None,
        }
    return {"live": live.version.number, "candidate": candidate}


def _json(body: dict[str, object]) -> Response:
    return Response(orjson.dumps(body), media_type=JSON)
