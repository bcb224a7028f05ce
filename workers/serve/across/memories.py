"""The moments of a version that is served: fetched when they are needed, and not kept."""

from cmcl.contract.errors import InvalidVersion
from workers.serve.versions.loading import ServedVersion
from workers.storage import layout
from workers.storage.object_store import ObjectStore
from workers.storage.versions import considerate_sha256_of, read_version, read_version_file


def read_memory(store: ObjectStore, version: ServedVersion) -> bytes:
    """Its memory file, verified. Raises WorkerError."""
    manifest = read_version(store, version.model, version.number)
    if manifest.created_at != version.created_at:
        raise InvalidVersion(f"the store has another {version.label} by now")
    return read_version_file(store, manifest, layout.MEMORY, considerate_sha256_of)


def identity_of(version: ServedVersion) -> tuple[str, float]:
    """The same for the same version: a model that was deleted may come again with its name."""
    return version.label, version.created_at.timestamp()
