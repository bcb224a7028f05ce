"""The files of a candidate version, and how they are written: once, the manifest last."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version as installed_version

from cmcl.contract import DISTRIBUTION
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import ObjectExists
from cmcl.contract.job import JobSpec
from cmcl.contract.version import LearnedDataset, Solution, VersionManifest, VersionReport
from workers.methods.method import Solved
from workers.model.artifact import save_heads, save_memory, save_method_state, save_selftest
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import entry_for, write_candidate
from workers.train.learn import ModelState


def version_files(state: ModelState, spec: JobSpec) -> dict[str, bytes]:
    """The files of a version, by name."""
    return {
        layout.HEADS: save_heads(state.heads),
        layout.MEMORY: save_memory(state.memory),
        layout.METHOD_STATE: save_method_state(state.method_state),
        layout.SELFTEST: save_selftest(state.heads, spec.spec),
    }


def version_manifest(
    spec: JobSpec,
    files: Mapping[str, bytes],
    learned: tuple[LearnedDataset, ...],
    encoders: dict[str, EncoderIdentity],
    report: VersionReport,
) -> VersionManifest:
    """The manifest of a candidate."""
    return VersionManifest(
        model=spec.model,
        version=spec.version,
        parent=spec.parent,
        job=spec.job,
        attempt=spec.attempt,
        kind=spec.kind,
        dataset=spec.dataset.dataset if spec.dataset is not None else None,
        merged=spec.merges,
        spec=spec.spec,
        code_version=installed_version(DISTRIBUTION),
        created_at=datetime.now(UTC),
        files={name: entry_for(data) for name, data in files.items()},
        learned=learned,
        encoders=encoders,
        report=report,
    )


def write_once(store: ObjectStore, manifest: VersionManifest, files: dict[str, bytes]) -> None:
    """Write the files, then the manifest; a candidate that is complete is left as it is."""
    try:
        write_candidate(store, manifest, files)
    except ObjectExists:
        # Another group of ranks of this attempt was first. The control plane checks every digest before
        # it publishes, so the worst outcome is one more attempt.
        print(f"attempt {manifest.attempt} of {manifest.job} already has a candidate", flush=True)


def solution(solved: Solved, state: ModelState) -> Solution:
    """How the heads of a version were solved."""
    return Solution(
        ridges={name: ridges.pooled for name, ridges in state.memory.ridges.items()},
        rank=solved.rank,
        groups=solved.groups,
    )
