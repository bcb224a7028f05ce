"""Versions of a model."""

from cmcl.flow.api import Api, segment
from cmcl.flow.effects import Flow, Items
from cmcl.types import Version, VersionSummary


def versions(api: Api, model: str) -> Items[VersionSummary]:
    """All versions of a model, the first one first."""
    return api.pages(VersionSummary, f"/v1/models/{segment(model)}/versions")


def version(api: Api, model: str, number: int) -> Flow[Version]:
    """One version: certificate, evaluation matrix, capacity, lineage, and its manifest."""
    return api.get(Version, f"/v1/models/{segment(model)}/versions/{number}")


def retire_version(api: Api, model: str, number: int) -> Flow[None]:
    """Let a version answer no more; refused for the newest one and the one that answers."""
    return api.delete(f"/v1/models/{segment(model)}/versions/{number}")
