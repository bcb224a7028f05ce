"""Versions of a model, and the one on trial."""

from cmcl.contract.rollout import TrialPlan
from cmcl.flow.api import Api, posted_reason, segment
from cmcl.flow.effects import Flow, Items
from cmcl.types import Candidate, Version, VersionSummary


def versions(api: Api, model: str) -> Items[VersionSummary]:
    """All versions of a model, the first one first."""
    return api.pages(VersionSummary, f"/v1/models/{segment(model)}/versions")


def version(api: Api, model: str, number: int) -> Flow[Version]:
    """One version: certificate, evaluation matrix, capacity, lineage, and its manifest."""
    return api.get(Version, f"/v1/models/{segment(model)}/versions/{number}")


def retire_version(api: Api, model: str, number: int) -> Flow[None]:
    """Let a version answer no more; refused for the newest one and the one that answers."""
    return api.delete(f"/v1/models/{segment(model)}/versions/{number}")


def candidate(api: Api, model: str) -> Flow[Candidate]:
    """The version on trial, and how it compares with the one that answers."""
    return api.get(Candidate, _candidate(model))


def set_candidate(
    api: Api,
    model: str,
    version: int,
    plan: TrialPlan,
    reason: str = "",
    if_generation: int | None = None,
) -> Flow[Candidate]:
    """Try a version beside the one that answers, or change the trial.

    `if_generation`: only if nobody promoted since (else 412).
    """
    body = {"version": version, **plan.model_dump(mode="json"), **posted_reason(reason)}
    changed, _ = yield from api.put(Candidate, _candidate(model), body, if_generation)
    return changed


def end_candidate(api: Api, model: str, reason: str = "") -> Flow[None]:
    """Take the candidate back: the version stays, and nobody is answered by it any more."""
    return api.delete(_candidate(model), posted_reason(reason))


def _candidate(model: str) -> str:
    return f"/v1/models/{segment(model)}/candidate"
