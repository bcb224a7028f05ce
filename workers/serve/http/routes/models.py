"""`GET /v1/models`: what answers."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from workers.serve.http.replica import Replica
from workers.serve.versions.live import LiveModel


def router(replica: Replica) -> APIRouter:
    """The routes of this replica."""
    made = APIRouter(tags=["models"])

    @made.get("/v1/models")
    async def list_models() -> Response:
        """What answers now."""
        live = replica.live.all()
        data = [_model(each) for _, each in sorted(live.items())]
        return JSONResponse({"object": "list", "data": data})

    return made


def _model(live: LiveModel) -> dict[str, object]:
    version = live.version
    return {
        "id": version.model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "cmcl",
        "version": version.number,
        "generation": live.generation,
        "width": version.spec.width,
        "modalities": version.spec.modalities,
    }
