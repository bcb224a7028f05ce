"""Forms of the page: filters of lists, posted forms, and confirmations.

Filters are sent as a query: a field left empty does not restrict. Posted forms are validated by the models of the API.

An action is a link to a page that says in numbers what will happen (GET). Its form (POST) has the state that the page
showed, and calls the handler of `/v1`. If the state has changed since, nothing is done, and the page is shown again with
the new state.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_origin
from urllib.parse import parse_qsl

from fastapi import Depends, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError
from starlette.responses import RedirectResponse, Response

from cmcl.contract.api.access import Scope
from cmcl.contract.api.events import EventKind
from cmcl.contract.api.jobs import JobState
from cmcl.contract.modality import NAME_PATTERN, Frozen
from service.api.dependencies import ContextDep, get_principal
from service.api.jobs import get_note
from service.api.pagination import LARGEST_NUMBER
from service.context import Context
from service.core.errors import (
    Conflict,
    FieldProblem,
    PreconditionFailed,
    Rejected,
    Unprocessable,
    UnsupportedMediaType,
)
from service.core.principal import Principal
from service.jobs.transitions import ActorNote
from service.page.rendering import pages_of, root_of

Form = TypeVar("Form", bound=BaseModel)

_TYPE = "application/x-www-form-urlencoded"
_MOST_FIELDS = 100
_SEQUENCES = (list, tuple, set, frozenset)

# A confirmation page shows what the action changes, so it needs both scopes.
ReadingWriter = Annotated[Principal, Security(get_principal, scopes=[Scope.READ, Scope.WRITE])]

_LONGEST_REASON = 500
_NO_NUL = r"^[^\x00]*$"

VersionNumber = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
Again = Callable[[Rejected], Response]


def none_if_empty(value: object) -> object:
    """A validator: a field left empty is not given."""
    return None if value == "" else value


_Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModelFilter = Annotated[_Name | None, BeforeValidator(none_if_empty), Query(alias="model")]
ModalityFilter = Annotated[_Name | None, BeforeValidator(none_if_empty), Query(alias="modality")]
StateFilter = Annotated[JobState | None, BeforeValidator(none_if_empty), Query(alias="state")]
KindFilter = Annotated[EventKind | None, BeforeValidator(none_if_empty), Query(alias="kind")]


def posted(model: type[Form]) -> Any:
    """A dependency that reads the form of a request as that model. A field left empty has its default."""

    async def read(request: Request) -> Form:
        fields = await _read(request)
        values: dict[str, object] = {}
        for name, texts in fields.items():
            info = model.model_fields.get(name)
            is_several = info is not None and get_origin(info.annotation) in _SEQUENCES
            if is_several:
                values[name] = texts
            elif texts[-1]:
                values[name] = texts[-1]
        return validated(model, values)

    reader: Callable[[Request], Coroutine[Any, Any, Form]] = read
    return Depends(reader)


def validated(model: type[Form], values: Mapping[str, object]) -> Form:
    """The model with these values. Raises RequestValidationError, which becomes a readable 422."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from error


def see_other(request: Request, address: str, done: str = "") -> RedirectResponse:
    """Redirect after a form, to an address below `/ui/`. `done` names what the next page confirms."""
    confirmed = f"{'&' if '?' in address else '?'}done={done}" if done else ""
    return RedirectResponse(f"{root_of(request.url.path)}{address}{confirmed}", 303)


async def _read(request: Request) -> dict[str, list[str]]:
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != _TYPE:
        message = f"the Content-Type is {declared or 'missing'}, permitted: {_TYPE}"
        raise UnsupportedMediaType(message)
    try:
        text = (await request.body()).decode()
        pairs = parse_qsl(
            text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except ValueError as error:
        message = f"the form cannot be read: {error}"
        raise Unprocessable(message, FieldProblem("body", message)) from error
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


@dataclass(frozen=True)
class ActionRequest:
    """A request about an action, who sent it, and the parts that act."""

    http: Request
    principal: Principal
    context: Context

    def note(self, seen: int) -> ActorNote:
        """Who acts on a job, and which revision of it the page has shown."""
        return get_note(self.principal, self.context, seen)

    def page(self, name: str, changed: Rejected | None, /, **values: object) -> Response:
        """The confirmation page. `changed`: why nothing was done; None where nothing was asked for yet."""
        status = 200 if changed is None else 412 if isinstance(changed, PreconditionFailed) else 409
        return pages_of(self.http).render(self.http, name, status, changed=changed, **values)


def _by(scope: Scope) -> Any:
    """A dependency: an action of someone with this scope."""

    def read(
        request: Request,
        principal: Annotated[Principal, Security(get_principal, scopes=[Scope.READ, scope])],
        context: ContextDep,
    ) -> ActionRequest:
        return ActionRequest(request, principal, context)

    return Depends(read)


TrainersAction = Annotated[ActionRequest, _by(Scope.TRAIN)]


class SeenForm(Frozen):
    """A form with the revision that its page showed."""

    seen: int = Field(ge=0, le=LARGEST_NUMBER)


class ReasonForm(SeenForm):
    """The same with a reason, for the history."""

    reason: str = Field(default="", max_length=_LONGEST_REASON, pattern=_NO_NUL)


class DecisionForm(SeenForm):
    """The same with a reason that must be given."""

    reason: Annotated[
        str,
        StringConstraints(
            strip_whitespace=True, min_length=1, max_length=_LONGEST_REASON, pattern=_NO_NUL
        ),
    ]


def confirmed(act: Callable[[], object], done: Callable[[], Response], again: Again) -> Response:
    """Act, and return the response of `done`.

    `again` shows the page with the new state and with why nothing was done: something has changed since it was shown, or
    the state does not permit the action.
    """
    try:
        act()
    except (PreconditionFailed, Conflict) as error:
        return again(error)
    return done()
