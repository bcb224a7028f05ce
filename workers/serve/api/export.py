"""`GET /v1/models/{model}/export`: a version as a model for other programs, as a tar archive."""

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cmcl.contract.api.versions import EvaluationRow
from cmcl.contract.errors import ObjectNotFound, StorageUnavailable, WorkerError
from cmcl.contract.version import VersionManifest
from workers.serve.api.context import (
    ANSWERED_VERSION,
    TIMEOUT,
    Replica,
    RequestContext,
    hold_until_sent,
    read_context,
    within_deadline,
)
from workers.serve.api.openapi import BYTES, WAIT, operation
from workers.serve.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    NotReady,
    Unprocessable,
    VersionDamaged,
    shortened,
)
from workers.serve.export.formats import (
    FORMATS,
    ExportedFile,
    check_format,
    check_moments,
    evaluation_matrix,
    export_files,
    moments_files,
    tar,
)
from workers.serve.versions.live import parse_reference
from workers.serve.versions.loading import ServedVersion, StoredVersions

# Generators of clients do not know application/x-tar; the name of the file says what it is.
_TAR = "application/octet-stream"
_PARAMETERS = (
    {
        "name": "format",
        "in": "query",
        "required": True,
        "schema": {"type": "string", "enum": [*FORMATS]},
    },
    {
        "name": "moments",
        "in": "query",
        "required": False,
        "schema": {"type": "boolean", "default": False},
        "description": "also the means and second moments of every dataset, so that another site can merge them; with "
        "format safetensors, for the policy improve, and for the operator's key only",
    },
    TIMEOUT,
)
_MERGEABLE = "safetensors"


def router(replica: Replica) -> APIRouter:
    made = APIRouter(tags=["models"])
    described = operation(
        "export_model",
        None,
        WAIT | {422, 501},
        parameters=_PARAMETERS,
        success={"headers": ANSWERED_VERSION, "content": {_TAR: BYTES}},
    )
    path = "/v1/models/{model}/export"
    made.get(path, response_class=StreamingResponse, **described)(_Export(replica).answer)
    return made


class _Export:
    """Heads come from memory, what the card says from the manifests in the store."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._stored = StoredVersions(replica.store)

    async def answer(self, model: str, request: Request) -> Response:
        """Export a version, by the name of its model or as name@version, in a `format` of other programs.

        The answer is a tar archive with a model card. It has heads and no rows or encoders, and moments only if they
        are asked for.
        """
        replica = self._replica
        context = read_context(request, replica)
        format_ = request.query_params.get("format", "")
        if format_ not in FORMATS:
            permitted = ", ".join(FORMATS)
            raise InvalidRequest(
                f"format is {shortened(format_)}; permitted are {permitted}", "format"
            )
        with_moments = _asks_for_moments(request, format_, context)
        wanted = parse_reference(model)
        hold_until_sent(request, replica.admission.exports, context.owner, 1)
        async with within_deadline(context):
            version = await replica.lookup.find(wanted, 0, context.caller)
            check_format(format_, version.heads)
            manifest, matrix = await asyncio.to_thread(self._measured, version)
            moments = None
            if with_moments:
                moments = await asyncio.to_thread(self._moments, version, manifest)
        files = export_files(manifest, matrix, version.heads, format_, moments)
        name = f"{version.label}-{format_}.tar"
        headers = {
            "x-model-version": str(version.number),
            "content-disposition": f'attachment; filename="{name}"',
        }
        return StreamingResponse(tar(files, version.created_at), media_type=_TAR, headers=headers)

    def _measured(self, version: ServedVersion) -> tuple[VersionManifest, list[EvaluationRow]]:
        """Return the manifest, and the recall of the versions up to it. Raises NotFound, NotReady, VersionDamaged."""
        try:
            manifest = self._stored.manifest(version.model, version.number)
            _check_same(manifest, version)
            return manifest, evaluation_matrix(self._replica.store, manifest)
        except ObjectNotFound as error:
            message = f"{version.label} is no longer in object storage"
            raise NotFound(message, "model", "version_not_found") from error
        except StorageUnavailable as error:
            message = "object storage is unavailable; try again"
            raise NotReady(message, code="store_unavailable") from error
        except WorkerError as error:
            raise VersionDamaged(
                f"{version.label} is stored, but its manifest fails its checks", "model"
            ) from error

    def _moments(self, version: ServedVersion, manifest: VersionManifest) -> Iterator[ExportedFile]:
        """Return the files of the moments. Raises Unprocessable, NotReady, VersionDamaged."""
        if not manifest.spec.solves:
            raise Unprocessable(
                f"moments are exported to be merged, and {version.label} cannot be: its heads were trained on rows "
                f"({manifest.spec.learning}); versions with the policy improve can",
                "moments",
            )
        try:
            check_moments(self._replica.store, manifest)
        except StorageUnavailable as error:
            message = "object storage is unavailable; try again"
            raise NotReady(message, code="store_unavailable") from error
        except WorkerError as error:
            raise VersionDamaged(
                f"{version.label} is stored, but moments of its datasets are missing or damaged",
                "moments",
            ) from error
        return moments_files(self._replica.store, manifest)


def _asks_for_moments(request: Request, format_: str, context: RequestContext) -> bool:
    """Return whether moments are requested. Raises InvalidRequest, Forbidden."""
    given = request.query_params.get("moments", "false")
    if given not in ("true", "false"):
        raise InvalidRequest(f"moments is {shortened(given)}; permitted are true, false", "moments")
    if given == "false":
        return False
    if not context.caller.owns(None):
        raise Forbidden(
            "moments reveal more of the datasets than heads do, so only the operator's key may export them",
            "moments",
        )
    if format_ != _MERGEABLE:
        raise InvalidRequest(
            f"moments are exported with the format {_MERGEABLE} alone, which is what can be merged; format is "
            f"{shortened(format_)}",
            "moments",
        )
    return True


def _check_same(manifest: VersionManifest, version: ServedVersion) -> None:
    """A model may have been deleted and created again under its name. Raises NotReady."""
    if manifest.created_at != version.created_at:
        raise NotReady(f"{version.label} is being replaced; try again", "model")
