"""Try it: an item in, its neighbours across modalities out, by one version or by two side by side.

The item is a text, numbers, a file, or a held-out row. Neighbours are items of a collection, which follows the live
version, or held-out rows of a dataset, which any version can search.
"""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cmcl.contract.api.access import Scope
from cmcl.contract.api.endpoint import HeldOutList, HeldOutResults, SearchResults
from cmcl.contract.api.models import Model
from cmcl.contract.api.versions import Version, VersionSummary
from cmcl.contract.encoder import Media
from cmcl.contract.modality import NAME_PATTERN
from service.api.dependencies import BYTES, ContextDep, Reader, get_principal
from service.api.limits import BudgetsDep, pieces_of
from service.api.models import list_models, read_model
from service.api.pagination import LARGEST_NUMBER
from service.api.versions import list_versions, read_version
from service.context import Context
from service.core.errors import BodyTooLarge, FieldProblem, NotFound, Unprocessable
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.collections import INCLUDED, list_collections, read_collection, takes_of
from service.page.endpoint import Endpoint, EndpointProblem, release_slot
from service.page.forms import VersionNumber, none_if_empty
from service.page.rendering import PREFIX, Visitor, pages_of, visitor_of

router = APIRouter(prefix=PREFIX)

MOST_FILE_BYTES = 8 << 20
LONGEST_TEXT = 2_000
LONGEST_NUMBERS = 30_000
FILES: tuple[Media, ...] = ("image", "audio", "video")
_COLLECTION, _DATASET = "collection:", "dataset:"
_TOP_K, _ROWS_SHOWN, _OFFERED = 10, 20, 200
_LIST_SECONDS = 2.5
_RAW_BODY = {
    "requestBody": {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}

Embedder = Annotated[Principal, Security(get_principal, scopes=[Scope.READ, Scope.EMBED])]
_empty = BeforeValidator(none_if_empty)
VersionChoice = Annotated[VersionNumber | None, _empty]
FileMedia = Literal["image", "audio", "video"]
Name = Annotated[Annotated[str, Field(pattern=NAME_PATTERN)] | None, _empty]


class Wanted(BaseModel):
    """What the address asks for. A field left empty is not given.

    `media`: what the browser takes the file of the body for.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Name = None
    modality: Name = None
    text: Annotated[Annotated[str, Field(max_length=LONGEST_TEXT)] | None, _empty] = None
    numbers: Annotated[Annotated[str, Field(max_length=LONGEST_NUMBERS)] | None, _empty] = None
    row: Annotated[Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] | None, _empty] = None
    media: FileMedia | None = None
    where: Annotated[
        Annotated[str, Field(pattern=r"^(collection:[a-z0-9-]{1,48}|dataset:[A-Za-z0-9-]{1,80})$")]
        | None,
        _empty,
    ] = None
    among: Name = None
    version: VersionChoice = None
    other: VersionChoice = None
    offset: Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] = 0

    @property
    def collection(self) -> str | None:
        """The collection to search, if it is one."""
        return (
            self.where.removeprefix(_COLLECTION)
            if self.where and _COLLECTION in self.where
            else None
        )

    @property
    def dataset(self) -> str | None:
        """The dataset to search, if it is one."""
        return self.where.removeprefix(_DATASET) if self.where and _DATASET in self.where else None

    @property
    def versions(self) -> list[int | None]:
        """The versions that are asked; None: the live one."""
        return [self.version] if self.other is None else [self.version, self.other]


@dataclass(frozen=True)
class Offer:
    """What can be chosen: models, and of the chosen one its versions and datasets with held-out rows (id and name)."""

    models: list[str]
    model: Model | None
    versions: list[VersionSummary]
    datasets: list[tuple[str, str]]
    # Width of each modality that the live version has learned, and what its encoder takes.
    modalities: dict[str, int]
    takes: dict[str, Media]

    @property
    def not_learned(self) -> list[str]:
        """Modalities of the model that cannot be tried."""
        return (
            [name for name in self.model.modalities if name not in self.modalities]
            if self.model
            else []
        )


WantedDep = Annotated[Wanted, Query()]


@dataclass(frozen=True)
class Result:
    """What one version found, or why it found nothing."""

    label: str
    found: SearchResults | HeldOutResults | None = None
    problem: EndpointProblem | None = None


@router.get("/try")
async def try_page(
    request: Request, principal: Reader, context: ContextDep, wanted: WantedDep
) -> Response:
    """The form, and what was found."""
    offer = await run_in_threadpool(_offer, principal, context, wanted)
    item = None if offer.model is None else item_of(wanted, offer)
    return await _show(request, context, wanted, offer, item)


@router.post("/try/file", openapi_extra=_RAW_BODY)
async def try_file(
    request: Request,
    principal: Embedder,
    context: ContextDep,
    wanted: WantedDep,
    budgets: BudgetsDep,
) -> Response:
    """The same for a file, which a script sends as the body."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MOST_FILE_BYTES:
        raise _too_large()
    offer = await run_in_threadpool(_offer, principal, context, wanted)
    if offer.model is None:
        raise NotFound("name a model")
    modality = modality_taking(wanted, offer, FILES if wanted.media is None else (wanted.media,))
    with budgets.files.held(principal.owns_as, 1):
        content = bytearray()
        async for piece in pieces_of(request):
            content += piece
            if len(content) > MOST_FILE_BYTES:
                raise _too_large()
    if not content:
        raise Unprocessable("the file is empty", FieldProblem("body", "it has no bytes"))
    item = {"modality": modality, "data": base64.b64encode(content).decode("ascii")}
    return await _show(request, context, wanted, offer, item)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the file may have at most {MOST_FILE_BYTES >> 20} MiB to be tried here")


def _offer(principal: Principal, context: Context, wanted: Wanted) -> Offer:
    names = [
        each.name
        for each in list_models(principal, context, Seek(None, "asc", _OFFERED)).items
        if each.live_version is not None
    ]
    chosen = wanted.model or (names[0] if len(names) == 1 else None)
    if chosen is None:
        return Offer(names, None, [], [], {}, {})
    model = read_model(chosen, principal, context)
    newest = list_versions(chosen, principal, context, Seek(None, "desc", _OFFERED)).items
    live = None
    if model.live_version is not None:
        live = read_version(chosen, model.live_version, principal, context, matrix=False)
    learned = {name for line in live.lineage for name in line.pair.modalities} if live else set()
    takes = takes_of(chosen, principal, context)
    modalities = {name: each for name, each in model.modalities.items() if name in learned}
    return Offer(
        models=names if chosen in names else [*names, chosen],
        model=model,
        versions=[each for each in newest if each.stored_at and not each.retired_at],
        datasets=_held_out(live) if live else [],
        modalities={name: each.width for name, each in modalities.items()},
        takes={name: media for name, media in takes.items() if name in modalities},
    )


def _held_out(live: Version) -> list[tuple[str, str]]:
    """Datasets whose recall was measured, so that they have held-out rows."""
    measured = live.manifest.report.evaluation
    return [(line.dataset, line.name) for line in live.lineage if line.dataset in measured]


async def _show(
    request: Request, context: Context, wanted: Wanted, offer: Offer, item: dict[str, Any] | None
) -> Response:
    visitor: Visitor = visitor_of(request)
    endpoint: Endpoint = request.app.state.endpoint
    # It may wait for the endpoint, and others of the owner need the slot.
    release_slot(request)
    collections, rows, results = await asyncio.gather(
        list_collections(visitor, context, endpoint, _LIST_SECONDS),
        _rows(visitor, endpoint, wanted, offer),
        _results(visitor, context, endpoint, wanted, offer, item),
    )
    of_model = [
        each for each in collections.items if offer.model and each.model == offer.model.name
    ]
    # The first one is chosen: one with something to find.
    of_model.sort(key=lambda each: not (each.searched and each.searched.rows))
    values = {
        "wanted": wanted,
        "offer": offer,
        "collections": of_model,
        "endpoint_problem": collections.problem,
        "rows": rows,
        "results": results,
        "common": _common(results),
        "file_bytes_max": MOST_FILE_BYTES,
        "longest_text": LONGEST_TEXT,
        "longest_numbers": LONGEST_NUMBERS,
    }
    return await run_in_threadpool(lambda: pages_of(request).render(request, "try.html", **values))


async def _rows(
    visitor: Visitor, endpoint: Endpoint, wanted: Wanted, offer: Offer
) -> HeldOutList | EndpointProblem | None:
    """Rows of the chosen dataset, to pick one."""
    if offer.model is None or wanted.dataset is None:
        return None
    path = f"/v1/models/{_reference(offer.model.name, wanted.version)}/held-out/{wanted.dataset}"
    page: dict[str, str | int] = {"offset": wanted.offset, "limit": _ROWS_SHOWN}
    try:
        return await endpoint.ask(visitor, HeldOutList, path, parameters=page)
    except EndpointProblem as problem:
        return problem


async def _results(
    visitor: Visitor,
    context: Context,
    endpoint: Endpoint,
    wanted: Wanted,
    offer: Offer,
    item: dict[str, Any] | None,
) -> list[Result]:
    if item is None or offer.model is None:
        return []
    name = offer.model.name
    if wanted.where is None:
        message = "choose where to search: a collection, or held-out rows of a dataset"
        raise Unprocessable(message, FieldProblem("where", message))
    if wanted.collection is not None:
        return [await _in_collection(visitor, context, endpoint, wanted, item)]
    asked = item if "row" in item else {"query": item}
    body = {**asked, "top_k": _TOP_K} | ({"among": wanted.among} if wanted.among else {})

    async def by(version: int | None) -> Result:
        reference = _reference(name, version)
        path = f"/v1/models/{reference}/held-out/{wanted.dataset}/search"
        return await _result(reference, endpoint.ask(visitor, HeldOutResults, path, body))

    return list(await asyncio.gather(*(by(version) for version in wanted.versions)))


async def _in_collection(
    visitor: Visitor, context: Context, endpoint: Endpoint, wanted: Wanted, item: dict[str, Any]
) -> Result:
    """A collection follows the live version, so one result is all there is."""
    body: dict[str, Any] = {"query": item, "top_k": _TOP_K, "include": list(INCLUDED)}
    if wanted.among:
        body["modalities"] = [wanted.among]
    name = wanted.collection or ""

    async def found() -> SearchResults:
        await read_collection(visitor, context, endpoint, name)
        return await endpoint.ask(visitor, SearchResults, f"/v1/collections/{name}/search", body)

    return await _result(name, found())


async def _result(label: str, asked: Any) -> Result:
    try:
        found: SearchResults | HeldOutResults = await asked
    except EndpointProblem as problem:
        return Result(label, problem=problem)
    return Result(found.model, found)


def _reference(model: str, version: int | None) -> str:
    return model if version is None else f"{model}@{version}"


def _common(results: list[Result]) -> tuple[int, int] | None:
    """How many of how many results two versions have in common; None unless both found some."""
    found = [each.found for each in results if each.found is not None]
    if len(found) < 2:
        return None
    first, second = ({(hit.modality, hit.id) for hit in each.data} for each in found)
    return len(first & second), max(len(first), len(second))


def modality_of(wanted: Wanted, offer: Offer) -> str:
    """The modality of the item. Raises Unprocessable."""
    known = list(offer.modalities)
    if wanted.modality not in known:
        message = f"permitted: {', '.join(known)}"
        raise Unprocessable(
            "choose the modality of the item", FieldProblem("modality", message, wanted.modality)
        )
    return wanted.modality


def modality_taking(wanted: Wanted, offer: Offer, media: Sequence[Media]) -> str:
    """The chosen modality if its encoder takes the item, else the first one whose encoder does. Raises Unprocessable."""
    taking = [name for name, takes in offer.takes.items() if takes in media]
    if not taking:
        takes = ", ".join(f"{name} takes {takes}" for name, takes in offer.takes.items())
        message = (
            f"no modality of this model takes {' or '.join(media)}: {takes or 'it has no encoders'}"
        )
        raise Unprocessable(message, FieldProblem("modality", message, wanted.modality))
    chosen = taking[0] if wanted.modality is None else modality_of(wanted, offer)
    return chosen if chosen in taking else taking[0]


def item_of(wanted: Wanted, offer: Offer) -> dict[str, Any] | None:
    """The item in the form of the endpoint; None if nothing is asked for yet. Raises Unprocessable."""
    given = {
        name: getattr(wanted, name)
        for name in ("text", "numbers", "row")
        if getattr(wanted, name) is not None
    }
    if not given:
        return None
    if len(given) > 1:
        message = f"{' and '.join(given)} are given; give one of text, numbers and row"
        raise Unprocessable(message, *(FieldProblem(name, "give one of them") for name in given))
    if wanted.text is not None:
        return {"modality": modality_taking(wanted, offer, ("text",)), "text": wanted.text}
    modality = modality_of(wanted, offer)
    if wanted.row is not None:
        if wanted.dataset is None:
            message = "choose the dataset of the row to search in"
            raise Unprocessable(message, FieldProblem("where", message, wanted.where))
        return {"row": wanted.row, "modality": modality}
    field = "numbers" if offer.takes.get(modality) == "numbers" else "feature"
    return {"modality": modality, field: _numbers(wanted.numbers or "")}


def _numbers(text: str) -> list[float]:
    parts = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    try:
        numbers = [float(part) for part in parts]
        json.dumps(numbers, allow_nan=False)  # Raises ValueError for NaN and infinity.
    except ValueError as error:
        message = "give finite numbers, separated by commas or spaces"
        raise Unprocessable(message, FieldProblem("numbers", message, text[:80])) from error
    return numbers
