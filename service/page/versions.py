"""A version: what it learned, what that changed of earlier datasets, and how it was made.

People promote it and roll it back; each action has a confirmation page.
"""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cmcl.contract.api.jobs import CapacityChange
from cmcl.contract.api.versions import Promotion, Version
from cmcl.contract.version import VersionManifest
from service.api.dependencies import ContextDep, ModelPath, Reader, Reason, VersionPath
from service.api.jobs import to_candidate_dataset
from service.api.models import read_model, read_summary
from service.api.versions import (
    LiveChoice,
    list_promotions,
    post_rollback,
    put_live,
    read_capacity,
    read_version,
)
from service.context import Context
from service.core.errors import Rejected
from service.core.principal import Principal
from service.database.engine import Seek
from service.page.comparison import CHANGES, MOST_AT_A_GLANCE, compare_versions, comparison_values
from service.page.forms import (
    ActionRequest,
    ReasonForm,
    TrainersAction,
    VersionNumber,
    confirmed,
    posted,
    see_other,
)
from service.page.memory import read_matrix
from service.page.rendering import PREFIX, pages_of

router = APIRouter(prefix=PREFIX + "/models/{model}")

_ADDRESS = "/versions/{version}"
# Lines of a lineage that are shown, the newest ones.
_LINES = 50


@router.get(_ADDRESS)
def version_page(
    request: Request,
    model: ModelPath,
    version: VersionPath,
    principal: Reader,
    context: ContextDep,
) -> Response:
    """A version beside its parent."""
    summary = read_summary(model, principal, context)
    found = read_version(model, version, principal, context, matrix=False)
    report, parent = found.manifest.report, _parent(found, principal, context)
    datasets = [to_candidate_dataset(line, found.manifest, parent) for line in found.lineage]
    before = parent.report.capacity if parent else {}
    # With the policy improve and with other methods, no head becomes full.
    room = read_capacity(model, principal, context, limit=1) if report.capacity else None
    return pages_of(request).render(
        request,
        "version.html",
        version=found,
        report=report,
        model=summary,
        capacity={
            modality: CapacityChange(before=before.get(modality), after=after)
            for modality, after in report.capacity.items()
        },
        room=room if room and room.version == version else None,
        lineage=found.lineage[-_LINES:],
        # A function: only a whole page, which can be printed, has it drawn.
        matrix=partial(read_matrix, found, principal, context),
        **comparison_values(datasets),
    )


@router.get(_ADDRESS + "/manifest")
def manifest_file(
    model: ModelPath, version: VersionPath, principal: Reader, context: ContextDep
) -> Response:
    """The manifest of a version as a file."""
    found = read_version(model, version, principal, context, matrix=False)
    return Response(
        found.manifest.model_dump_json(indent=2),
        headers={"Content-Disposition": f'attachment; filename="{model}-v{version}-manifest.json"'},
        media_type="application/json",
    )


def _parent(version: Version, principal: Principal, context: Context) -> VersionManifest | None:
    if version.parent is None:
        return None
    return read_version(version.model, version.parent, principal, context, matrix=False).manifest


class PromoteForm(ReasonForm):
    """The version to promote."""

    version: VersionNumber


@router.get("/promote")
def confirm_promotion(model: ModelPath, version: VersionNumber, asked: TrainersAction) -> Response:
    """Say what promoting the version changes."""
    return _promotion_page(asked, model, version)


@router.post("/promote")
def promote(
    model: ModelPath, form: Annotated[PromoteForm, posted(PromoteForm)], asked: TrainersAction
) -> Response:
    """Promote the version."""
    choice = LiveChoice(version=form.version, reason=form.reason)
    return confirmed(
        lambda: put_live(model, choice, asked.principal, asked.context, Response(), form.seen),
        lambda: see_other(asked.http, f"models/{model}", "promoted"),
        lambda error: _promotion_page(asked, model, form.version, error),
    )


@router.get("/rollback")
def confirm_rollback(model: ModelPath, asked: TrainersAction) -> Response:
    """Say to which version it returns, and what that changes."""
    return _rollback_page(asked, model)


@router.post("/rollback")
def roll_back(
    model: ModelPath, form: Annotated[ReasonForm, posted(ReasonForm)], asked: TrainersAction
) -> Response:
    """Return to the version that was promoted before."""
    reason = Reason(reason=form.reason)
    return confirmed(
        lambda: post_rollback(model, reason, asked.principal, asked.context, None, form.seen),
        lambda: see_other(asked.http, f"models/{model}", "rolled-back"),
        lambda error: _rollback_page(asked, model, error),
    )


def _promotion_page(
    asked: ActionRequest, model: str, version: int, changed: Rejected | None = None
) -> Response:
    found = read_model(model, asked.principal, asked.context)
    comparison = compare_versions(
        model, found.live_version, version, asked.principal, asked.context
    )
    new = comparison.after
    is_servable = new.stored_at is not None and new.retired_at is None
    return asked.page(
        "confirm_promotion.html",
        changed,
        action="promote",
        model=found,
        comparison=comparison,
        changes=CHANGES,
        most=MOST_AT_A_GLANCE,
        previous=None,
        is_possible=is_servable and version != found.live_version,
    )


def _rollback_page(asked: ActionRequest, model: str, changed: Rejected | None = None) -> Response:
    found = read_model(model, asked.principal, asked.context)
    previous = _previous(model, found.live_generation, asked.principal, asked.context)
    comparison, is_possible = None, False
    if previous is not None:
        comparison = compare_versions(
            model, found.live_version, previous.version, asked.principal, asked.context
        )
        is_possible = comparison.after.retired_at is None
    return asked.page(
        "confirm_promotion.html",
        changed,
        action="rollback",
        model=found,
        comparison=comparison,
        changes=CHANGES,
        most=MOST_AT_A_GLANCE,
        previous=previous,
        is_possible=is_possible,
    )


def _previous(
    model: str, generation: int, principal: Principal, context: Context
) -> Promotion | None:
    """The promotion that a rollback returns to; None if there is none."""

    def promotion(number: int) -> Promotion | None:
        seek = Seek(number - 1, "asc", 1)
        return next(iter(list_promotions(model, principal, context, seek).items), None)

    now = promotion(generation) if generation else None
    return None if now is None or now.returns_to is None else promotion(now.returns_to)
