"""`GET /v1/models`: models and their versions, in OpenAI's shape with further fields."""

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import ModelList, ServedModel
from workers.encoders.port import EncoderMismatch
from workers.serve.api.context import TIMEOUT, Replica, admitted, json_answer
from workers.serve.api.inputs import check_encoder
from workers.serve.api.migrate import Changes, Compatibilities
from workers.serve.api.openapi import KEY, WAIT, operation
from workers.serve.auth import Caller
from workers.serve.encoders.port import EncoderUnavailable
from workers.serve.errors import ApiError, NotFound
from workers.serve.versions.live import LiveModel, ModelReference, parse_reference
from workers.serve.versions.loading import ServedVersion

# OpenAI's clients require an owner.
_NO_OWNER = "cmcl"


def router(replica: Replica) -> APIRouter:
    made = APIRouter(tags=["models"])
    models = _Models(replica)
    made.get("/v1/models", **operation("list_models", ModelList, KEY | {429}))(models.list_models)
    one = operation("read_model", ServedModel, WAIT, parameters=[TIMEOUT])
    made.get("/v1/models/{model}", **one)(models.one_model)
    return made


class _Models:
    """Answers from memory. Of one model, its encoders are asked, and a version named exactly may be loaded."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._compatibilities = Compatibilities(replica.store, replica.background)

    async def list_models(self, request: Request) -> Response:
        """List models: versions, modalities, encoders, and whether stored vectors still fit."""
        replica = self._replica
        async with admitted(request, replica) as context:
            loaded = replica.lookup.loaded()
            data = [
                self._described(name, live, live.version, loaded.get(name, []))
                for name, live in sorted(replica.live.all().items())
                if context.caller.sees(live.owner)
            ]
        return json_answer({"object": "list", "data": data})

    async def one_model(self, request: Request, model: str) -> Response:
        """Show one model, by its name or as name@version, and whether its encoders are the right ones."""
        async with admitted(request, self._replica) as context:
            return json_answer(await self._shown(model, parse_reference(model), context.caller))

    async def _shown(self, model: str, wanted: ModelReference, caller: Caller) -> dict[str, object]:
        exact = None
        if wanted.version is not None:
            exact = await self._replica.lookup.find(wanted, 0, caller)
        live = self._replica.live.get(wanted.name)
        if live is None or not caller.sees(live.owner):
            raise NotFound(f"there is no model {wanted.name!r} with a live version", "model")
        version = exact or live.version
        loaded = self._replica.lookup.loaded().get(wanted.name, [])
        body = self._described(model, live, version, loaded)
        body["encoders"] = await self._checked_encoders(version)
        return body

    def _described(
        self, name: str, live: LiveModel, version: ServedVersion, loaded: list[ServedVersion]
    ) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": int(version.created_at.timestamp()),
            "owned_by": live.owner or _NO_OWNER,
            "version": version.number,
            "generation": live.generation,
            "width": version.spec.width,
            "dimensions": [version.spec.width],
            "modalities": version.spec.widths,
            "pairs": sorted(pair.key for pair in version.pairs),
            "encoders": self._encoders(version),
            "versions": {
                "live": live.version.number,
                "loaded": sorted(each.number for each in loaded),
                "lineage": list(live.version.lineage),
                "retired": list(live.retired),
            },
            "compatibility": self._compatibility(live.version, loaded),
            "refusal": self._refusal(version.model),
        }

    def _encoders(self, version: ServedVersion) -> dict[str, dict[str, Any]]:
        """The encoders that modalities are bound to, without asking them."""
        found: dict[str, dict[str, Any]] = {}
        for modality, bound in version.spec.modalities.items():
            if bound.encoder is None:
                continue
            client = self._replica.encoders.get(bound.encoder)
            spec = client and client.spec
            found[modality] = {
                "name": bound.encoder,
                "title": spec and spec.title,
                "takes": spec and spec.takes,
                "matches": None,
                "problem": None,
            }
        return found

    async def _checked_encoders(self, version: ServedVersion) -> dict[str, dict[str, Any]]:
        encoders = self._encoders(version)
        states = await asyncio.gather(*(self._state(version, modality) for modality in encoders))
        return {
            modality: encoder | state
            for (modality, encoder), state in zip(encoders.items(), states, strict=True)
        }

    async def _state(self, version: ServedVersion, modality: str) -> dict[str, Any]:
        try:
            await check_encoder(self._replica, version, modality)
        except (ApiError, EncoderMismatch) as error:
            return {"matches": False, "problem": str(error)}
        except EncoderUnavailable as error:
            return {"problem": str(error)}
        return {"matches": True}

    def _compatibility(
        self, live: ServedVersion, loaded: list[ServedVersion]
    ) -> dict[str, Changes | None]:
        """Changes by number of each version in memory; None until it is computed."""
        others = sorted((each for each in loaded if each != live), key=lambda each: each.number)
        return {str(each.number): self._compatibilities.known(each, live) for each in others}

    def _refusal(self, model: str) -> dict[str, object] | None:
        """The refusal without the store's address, which callers must not see."""
        refusal = self._replica.live.refusal(model)
        if refusal is None:
            return None
        return {
            "version": refusal.version,
            "generation": refusal.generation,
            "kind": refusal.kind,
            "reason": refusal.reason.replace(f"{self._replica.store.uri}/", ""),
            "failures": refusal.failures,
        }
