"""What people do to the canary of a model: start, change, abort. Each has a confirmation page."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from service.api.canary import CanaryChoice, delete_canary, put_canary
from service.api.dependencies import ContextDep, ModelPath
from service.api.models import read_model
from service.api.pagination import LARGEST_NUMBER
from service.api.versions import list_versions
from service.database.seek import Seek
from service.errors import Refused
from service.page.canary import running_canary
from service.page.comparison import compare_versions
from service.page.forms import (
    ActionRequest,
    ReadingTrainer,
    ReasonForm,
    confirmed,
    posted,
    see_other,
    validated,
)
from service.page.rendering import PREFIX

router = APIRouter(prefix=PREFIX + "/models/{model}/canary")

# Versions that the form offers, the newest ones.
_OFFERED = 100
VersionChoice = Annotated[int | None, Query(alias="version", ge=1, le=LARGEST_NUMBER)]
Version = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]
Percent = Annotated[float, Field(ge=0, le=100)]


class AbortForm(ReasonForm):
    """The canary that was seen."""

    version: Version


class CanaryForm(ReasonForm):
    """The plan of a canary. Shares are in percent."""

    version: Version
    share: Percent = 0.0
    shadow: Percent = 0.0
    min_requests: int | None = None
    promote_after: int | None = None
    max_error_share: Percent | None = None
    min_cosine: float | None = None
    min_overlap: Percent | None = None

    def choice(self) -> CanaryChoice:
        """The body of the request. Raises RequestValidationError."""
        rule = {
            "min_requests": self.min_requests,
            "promote_after": self.promote_after,
            "max_error_share": _share(self.max_error_share),
            "min_cosine": self.min_cosine,
            "min_overlap": _share(self.min_overlap),
        }
        values = {
            "version": self.version,
            "share": self.share / 100,
            "shadow": self.shadow / 100,
            "reason": self.reason,
            "rule": {name: value for name, value in rule.items() if value is not None},
        }
        return validated(CanaryChoice, values)


@router.get("/start")
def confirm_canary(
    request: Request,
    model: ModelPath,
    principal: ReadingTrainer,
    context: ContextDep,
    version: VersionChoice = None,
) -> Response:
    """The form of a canary: which version, which traffic, and what ends it."""
    return _canary_page(ActionRequest(request, principal, context), model, version)


@router.post("/start")
def start_canary(
    request: Request,
    model: ModelPath,
    form: Annotated[CanaryForm, posted(CanaryForm)],
    principal: ReadingTrainer,
    context: ContextDep,
) -> Response:
    """Start the canary, or change its plan."""
    choice = form.choice()
    return confirmed(
        lambda: put_canary(model, choice, principal, context, Response(), form.seen),
        lambda: see_other(request, f"models/{model}/canary", "canary-started"),
        lambda error: _canary_page(
            ActionRequest(request, principal, context), model, form.version, error
        ),
    )


@router.get("/abort")
def confirm_abort(
    request: Request, model: ModelPath, principal: ReadingTrainer, context: ContextDep
) -> Response:
    """Say what ending the canary means."""
    return _abort_page(ActionRequest(request, principal, context), model)


@router.post("/abort")
def abort(
    request: Request,
    model: ModelPath,
    form: Annotated[AbortForm, posted(AbortForm)],
    principal: ReadingTrainer,
    context: ContextDep,
) -> Response:
    """End the canary."""
    return confirmed(
        lambda: delete_canary(model, principal, context, form.reason, form.version, form.seen),
        lambda: see_other(request, f"models/{model}/canary", "canary-aborted"),
        lambda error: _abort_page(ActionRequest(request, principal, context), model, error),
    )


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _canary_page(
    asked: ActionRequest,
    model: str,
    version: int | None,
    changed: Refused | None = None,
) -> Response:
    found = read_model(model, asked.principal, asked.context)
    newest = list_versions(
        model, asked.principal, asked.context, Seek(None, "desc", _OFFERED)
    ).items
    offered = [
        each
        for each in newest
        if each.stored_at and not each.retired_at and each.version != found.live_version
    ]
    chosen = version or next((each.version for each in offered), None)
    live = found.live_version
    return asked.page(
        "confirm_canary.html",
        changed,
        model=found,
        offered=offered,
        chosen=chosen,
        comparison=compare_versions(model, live, chosen, asked.principal, asked.context)
        if live and chosen
        else None,
        canary=running_canary(model, asked.principal, asked.context),
        is_possible=live is not None and bool(offered),
    )


def _abort_page(
    asked: ActionRequest,
    model: str,
    changed: Refused | None = None,
) -> Response:
    canary = running_canary(model, asked.principal, asked.context)
    return asked.page(
        "confirm_abort.html",
        changed,
        model=read_model(model, asked.principal, asked.context),
        canary=canary,
        is_possible=canary is not None,
    )
