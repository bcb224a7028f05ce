"""A version: what it learned, what that changed of earlier datasets, and how it was made."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cmcl.contract.version import LearnedDataset, VersionManifest
from service.api.candidates import CandidateDataset, CapacityChange
from service.api.dependencies import ContextDep, ModelPath, Reader, VersionPath
from service.api.summaries import ModelSummary, read_summary
from service.api.versions import VersionView, read_version
from service.context import Context
from service.page.comparison import WantedDep, comparison_values
from service.page.rendering import PREFIX, pages_of
from service.principal import Principal
from workers.storage import layout

router = APIRouter(prefix=PREFIX)

_ADDRESS = "/models/{model}/versions/{version}"
# Of a lineage with more lines, the newest ones are shown.
_LINES, _LINKS = 50, 12
_HELD_BY_FILE = {
    layout.HEADS: "all heads, and how features are conditioned",
    layout.MEMORY: "moments, pooled for each pair",
    layout.METHOD_STATE: "state of the method",
    layout.SELFTEST: "random features and their embeddings, which replicas compare with their own",
}


@dataclass(frozen=True)
class Standing:
    """What a version is for its model today."""

    is_live: bool
    is_canary: bool
    is_newest: bool
    newest: int


@router.get(_ADDRESS)
def version_page(
    request: Request,
    model: ModelPath,
    version: VersionPath,
    principal: Reader,
    context: ContextDep,
    wanted: WantedDep,
) -> Response:
    """A version beside its parent."""
    summary = read_summary(model, principal, context)
    found = read_version(model, version, principal, context, matrix=False)
    report, parent = found.manifest.report, _parent(found, principal, context)
    datasets = [CandidateDataset.of(line, found.manifest, parent) for line in found.lineage]
    before = parent.report.capacity if parent else {}
    return pages_of(request).render(
        request,
        "version.html",
        version=found,
        report=report,
        model=summary,
        standing=_standing(summary, version),
        capacity={
            modality: CapacityChange(before=before.get(modality), after=after)
            for modality, after in report.capacity.items()
        },
        held_by_file=_HELD_BY_FILE,
        lineage=found.lineage[-_LINES:],
        chain=_neighbours(found.lineage),
        **comparison_values(datasets, wanted, summary.drift_bound, report.seconds),
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


def _parent(version: VersionView, principal: Principal, context: Context) -> VersionManifest | None:
    if version.parent is None:
        return None
    return read_version(version.model, version.parent, principal, context, matrix=False).manifest


def _standing(model: ModelSummary, version: int) -> Standing:
    newest = model.newest.version if model.newest else version
    return Standing(
        is_live=model.live_version == version,
        is_canary=model.canary == version,
        is_newest=newest == version,
        newest=newest,
    )


def _neighbours(lineage: Sequence[LearnedDataset]) -> list[LearnedDataset | None]:
    """The lines of the lineage that the chain shows; None for those between them that it does not."""
    if len(lineage) <= _LINKS:
        return list(lineage)
    return [lineage[0], None, *lineage[-(_LINKS - 2) :]]
