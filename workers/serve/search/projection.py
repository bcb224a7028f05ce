"""From features in the store to vectors in memory, some rows with each step.

Everything here is a generator that the follower's thread advances: between two steps it looks whether
there is something new, so that nobody waits for a collection that takes minutes.

Shapes: B rows of a batch, N rows of a part, E width of the embeddings.
"""

from collections.abc import Generator, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcl.contract.errors import InvalidVersion
from workers.serve.search.index.draft import Draft, Frozen, by_modality, project
from workers.serve.search.index.payloads import Mask
from workers.serve.search.stored.revision import Revision
from workers.serve.search.stored.segments import batches, features_matrix
from workers.serve.versions.loading import Float32Array, ServedVersion
from workers.storage.object_store import ObjectStore

Steps = Generator[None, None, Draft]


def can_continue(draft: Draft, head: Revision) -> bool:
    """Whether what came since is still told apart from what was there before."""
    return (
        draft.revision is not None
        and draft.revision.born == head.born
        and draft.revision.revision >= head.purged
    )


def catch_up(store: ObjectStore, draft: Draft, head: Revision) -> Iterator[None]:
    """Bring a draft that can continue to this revision.

    Raises StorageUnavailable, ObjectNotFound (swept meanwhile), InvalidVersion; the draft is then
    half-way, shows nothing of it, and can be brought there later.
    """
    applied = draft.revision.revision if draft.revision else 0
    for segment in head.segments:
        if segment.last > applied:
            for batch in batches(store, head.name, segment):
                draft.apply(batch)
                yield
    draft.revision = head


def loaded(store: ObjectStore, head: Revision, draft: Draft) -> Steps:
    """Fill an empty draft."""
    yield from catch_up(store, draft, head)
    yield from draft.build_graphs()
    return draft


def reprojected(store: ObjectStore, draft: Draft, version: ServedVersion) -> Steps:
    """The rows of a draft with vectors of another version.

    Features stream through: only vectors are held. Ids, payloads and their columns are shared with
    the draft, which goes on meanwhile. Raises as `catch_up` does.
    """
    frozen = draft.frozen()
    projection = _Projection(frozen, version)
    if frozen.revision is not None:
        for segment in frozen.revision.segments:
            columns = ("id", "modality", "feature", "deleted")
            for batch in batches(store, frozen.revision.name, segment, columns):
                projection.take(batch)
                yield
    other = draft.with_vectors(version, projection.finished(), frozen)
    yield from other.build_graphs()
    return other


class _Projection:
    """Vectors for each part of a frozen draft; a later feature of the same id replaces an earlier."""

    def __init__(self, frozen: Frozen, version: ServedVersion) -> None:
        self._frozen = frozen
        self._version = version
        width = version.spec.width
        self._vectors: dict[int, Float32Array] = {
            number: np.zeros((len(part), width), np.float32)
            for number, part in frozen.parts.items()
        }
        self._seen: dict[int, Mask] = {
            number: np.zeros(len(part), bool) for number, part in frozen.parts.items()
        }

    def take(self, batch: pa.RecordBatch) -> None:
        present = batch.filter(pc.invert(batch.column("deleted")))
        for modality, rows in by_modality(present):
            features = rows.column("feature")
            for number, (places, indices) in self._frozen.places_of(rows.column("id"), modality):
                chosen_BF = features_matrix(features.take(pa.array(indices)))
                self._vectors[number][places] = project(self._version, modality, chosen_BF)
                self._seen[number][places] = True

    def finished(self) -> Mapping[int, Float32Array]:
        """Raises InvalidVersion if a row has no feature in the store."""
        for number, part in self._frozen.parts.items():
            lost = np.flatnonzero(part.live_N & ~self._seen[number])
            if len(lost):
                raise InvalidVersion(
                    f"{len(lost)} rows have no feature in the store, such as "
                    f"{part.contents.ids[int(lost[0])].as_py()!r}"
                )
        return self._vectors
