"""Collections of the endpoint: the list, and the items of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from cmcl.contract.api.access import Scope
from cmcl.contract.api.endpoint import (
    Collection,
    CollectionList,
    ItemsResponse,
    StoredItem,
)
from cmcl.contract.encoder import Media
from cmcl.contract.modality import NAME_PATTERN
from service.api.dependencies import ContextDep, get_principal
from service.api.models import read_model
from service.api.pagination import LARGEST_NUMBER
from service.context import Context
from service.core.errors import NotFound
from service.core.principal import Principal
from service.page.endpoint import (
    SECONDS,
    Endpoint,
    EndpointProblem,
    Parameter,
    release_slot,
)
from service.page.forms import ModalityFilter
from service.page.rendering import PREFIX, Visitor, pages_of, visitor_of

router = APIRouter(prefix=PREFIX)

READ = [Security(get_principal, scopes=[Scope.READ])]
_LISTED = 48
# Collections that are looked through for items.
_SEARCHED = 4
# What is shown of each item beside its payload.
INCLUDED = ("thumbnail",)
CollectionPath = Annotated[str, Path(alias="collection", pattern=NAME_PATTERN)]
Offset = Annotated[int, Query(ge=0, le=LARGEST_NUMBER)]


@dataclass(frozen=True)
class Collections:
    """Collections that the visitor may see, or why they cannot be listed."""

    items: list[Collection] = field(default_factory=list)
    problem: EndpointProblem | None = None


@router.get("/collections", dependencies=READ)
async def collections_page(request: Request, context: ContextDep) -> Response:
    """Collections by name."""
    release_slot(request)
    endpoint: Endpoint = request.app.state.endpoint
    found = await list_collections(visitor_of(request), context, endpoint)
    return await run_in_threadpool(
        lambda: pages_of(request).render(
            request, "collections.html", collections=found.items, problem=found.problem
        )
    )


@router.get("/collections/{collection}", dependencies=READ)
async def collection_page(
    request: Request,
    collection: CollectionPath,
    context: ContextDep,
    modality: ModalityFilter = None,
    offset: Offset = 0,
) -> Response:
    """One collection and its items."""
    release_slot(request)
    visitor, endpoint = visitor_of(request), request.app.state.endpoint
    found, items, problem = None, None, None
    page: dict[str, Parameter] = {
        "offset": offset,
        "limit": _LISTED,
        "include": ",".join(INCLUDED),
    }
    if modality is not None:
        page["modality"] = modality
    try:
        found = await read_collection(visitor, context, endpoint, collection)
        path = f"/v1/collections/{collection}/items"
        items = await endpoint.ask(visitor, ItemsResponse, path, parameters=page)
    except EndpointProblem as error:
        if error.status == 404 and found is None:
            raise NotFound(str(error)) from error
        problem = error
    return await run_in_threadpool(
        lambda: pages_of(request).render(
            request,
            "collection.html",
            name=collection,
            collection=found,
            items=items,
            problem=problem,
            modality=modality,
            offset=offset,
            takes=takes_of(found.model, visitor.principal, context) if found else {},
        )
    )


async def list_collections(
    visitor: Visitor, context: Context, endpoint: Endpoint, seconds: float = SECONDS
) -> Collections:
    """The collections of the visitor's owner."""
    try:
        found = await endpoint.ask(visitor, CollectionList, "/v1/collections", seconds=seconds)
    except EndpointProblem as problem:
        return Collections(problem=problem)
    if endpoint.knows_owners(visitor):
        return Collections(found.data)
    models = {each.model for each in found.data}
    visible = await run_in_threadpool(_visible, models, visitor.principal, context)
    return Collections([each for each in found.data if each.model in visible])


async def read_collection(
    visitor: Visitor, context: Context, endpoint: Endpoint, name: str
) -> Collection:
    """One collection. Raises EndpointProblem, also for one of another owner's model."""
    found = await endpoint.ask(visitor, Collection, f"/v1/collections/{name}")
    if not endpoint.knows_owners(visitor) and not await run_in_threadpool(
        _visible, {found.model}, visitor.principal, context
    ):
        raise EndpointProblem(f"There is no collection {name!r}.", status=404)
    return found


async def find_items(
    visitor: Visitor, context: Context, endpoint: Endpoint, model: str, ids: Sequence[str]
) -> dict[tuple[str, str], StoredItem]:
    """The items with these ids in the collections of a model, by modality and id; none if the endpoint does not answer."""
    collections = await list_collections(visitor, context, endpoint)
    parameters: Mapping[str, Parameter] = {
        "id": ids,
        "limit": _LISTED,
        "include": ",".join(INCLUDED),
    }
    found: dict[tuple[str, str], StoredItem] = {}
    for each in [each for each in collections.items if each.model == model][:_SEARCHED]:
        path = f"/v1/collections/{each.id}/items"
        try:
            items = await endpoint.ask(visitor, ItemsResponse, path, parameters=parameters)
        except EndpointProblem:
            # A collection whose vectors are being computed; the others may have them.
            continue
        found = {**{(item.modality, item.id): item for item in items.data}, **found}
    return found


def takes_of(model: str, principal: Principal, context: Context) -> dict[str, Media]:
    """What the encoder of each modality of a model takes. Empty for a model that is gone."""
    declared = context.settings.encoders_by_name
    try:
        modalities = read_model(model, principal, context).modalities
    except NotFound:
        return {}
    return {
        name: declared[each.encoder].takes
        for name, each in modalities.items()
        if each.encoder in declared
    }


def _visible(models: set[str], principal: Principal, context: Context) -> set[str]:
    """Those of these models that the principal sees."""
    visible = set()
    for model in models:
        try:
            read_model(model, principal, context)
        except NotFound:
            continue
        visible.add(model)
    return visible
