"""Indexing of one collection: new revisions are applied to its index, new versions get a new index.

A new revision is applied to the index that answers. For a new version another index is built while the present
one keeps answering and taking writes, and then replaces it in one step. The index before is kept, so that a
rollback is a replacement as well. Building is a generator that the follower's thread advances: between two steps
it checks for news, so that a collection that takes minutes does not delay others.

Shapes: B rows of a batch, N rows of a part, E width of the embeddings.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcl.contract.errors import InvalidVersion
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections.index import Index
from workers.serve.collections.index_builder import FrozenRows, IndexBuilder, by_modality, project
from workers.serve.collections.payloads import Mask
from workers.serve.collections.revision_log import Revision
from workers.serve.collections.segments import (
    VERSIONS,
    batches,
    features_matrix,
    graphs_bytes,
    vectors_bytes,
)
from workers.serve.versions.loading import Float32Array, ServedVersion

logger = logging.getLogger(__name__)


Steps = Generator[None, None, IndexBuilder]


def can_continue(builder: IndexBuilder, head: Revision) -> bool:
    """Whether what was written since can still be applied to this builder."""
    return (
        builder.revision is not None
        and builder.revision.born == head.born
        and builder.revision.revision >= head.purged
    )


def catch_up(store: ObjectStore, builder: IndexBuilder, head: Revision) -> Iterator[None]:
    """Bring a builder that can continue to this revision.

    Raises StorageUnavailable, ObjectNotFound (swept since), InvalidVersion; the index does not show what was
    applied until then, and it can be continued later.
    """
    applied = builder.revision.revision if builder.revision else 0
    for segment in head.segments:
        if segment.last > applied:
            for batch in batches(store, head.name, segment):
                builder.apply(batch)
                yield
    builder.revision = head


def loaded(store: ObjectStore, head: Revision, builder: IndexBuilder) -> Steps:
    """Fill an empty builder."""
    yield from catch_up(store, builder, head)
    yield from builder.build_graphs()
    return builder


def reprojected(store: ObjectStore, builder: IndexBuilder, version: ServedVersion) -> Steps:
    """Compute vectors of another version for the rows of a builder.

    Features are streamed: only vectors are kept. Ids, payloads and their columns are shared with the builder, which
    remains in use. Raises as `catch_up` does.
    """
    frozen = builder.frozen()
    projection = _Projection(frozen, version)
    if frozen.revision is not None:
        for segment in frozen.revision.segments:
            columns = ("id", "modality", "feature", "deleted")
            for batch in batches(store, frozen.revision.name, segment, columns):
                projection.take(batch)
                yield
    other = builder.with_vectors(version, projection.finished(), frozen)
    yield from other.build_graphs()
    return other


class _Projection:
    """Vectors for each part of frozen rows whose modality the version has learned.

    A later feature of the same id replaces an earlier.
    """

    def __init__(self, frozen: FrozenRows, version: ServedVersion) -> None:
        self._frozen = frozen
        self._version = version
        width, not_learned = version.spec.width, version.not_learned
        self._parts = {
            number: part
            for number, part in frozen.parts.items()
            if part.contents.modality not in not_learned
        }
        self._vectors: dict[int, Float32Array] = {
            number: np.zeros((len(part), width), np.float32) for number, part in self._parts.items()
        }
        self._seen: dict[int, Mask] = {
            number: np.zeros(len(part), bool) for number, part in self._parts.items()
        }

    def take(self, batch: pa.RecordBatch) -> None:
        present = batch.filter(pc.invert(batch.column("deleted")))
        for modality, rows in by_modality(present):
            features = rows.column("feature")
            for number, (places, indices) in self._frozen.places_of(rows.column("id"), modality):
                if number not in self._parts:
                    continue
                chosen_BF = features_matrix(features.take(pa.array(indices)))
                self._vectors[number][places] = project(self._version, modality, chosen_BF)
                self._seen[number][places] = True

    def finished(self) -> Mapping[int, Float32Array]:
        """Return vectors of the parts whose modality was learned. Raises InvalidVersion for rows without a feature."""
        for number, part in self._parts.items():
            lost = np.flatnonzero(part.live_N & ~self._seen[number])
            if len(lost):
                raise InvalidVersion(
                    f"{len(lost)} rows have no feature in the store, such as "
                    f"{part.contents.ids[int(lost[0])].as_py()!r}"
                )
        return self._vectors


@dataclass(frozen=True)
class CollectionSnapshot:
    """The state of a collection at one moment.

    `width`: of its vectors; None: the model has no live version. `index` None: it is being built, or the model has
    no live version. `problem`: why it is behind; `is_damaged`: a retry cannot help, as what is stored is damaged.
    """

    revision: Revision
    width: int | None
    index: Index | None
    problem: str | None = None
    is_damaged: bool = False

    @cached_property
    def rows(self) -> int:
        """An upper bound of its rows, see `rows_at_most`."""
        return rows_at_most(self.revision, self.index)

    @cached_property
    def read_bytes_total(self) -> int:
        """Bytes of what was read, with vectors of as many versions as a swap has at once."""
        index = self.index
        if index is None:
            return 0
        return index.contents_bytes + VERSIONS * (index.vectors_bytes + index.graphs_bytes)

    @cached_property
    def unread_bytes(self) -> int:
        """An upper bound of the bytes of rows still to be read and graphs still to be built.

        0 where they are not going to be read.
        """
        if self.width is None or self.is_damaged:
            return 0
        read = self.index.revision if self.index is not None else 0
        unread = [each for each in self.revision.segments if each.last > read]
        rows = sum(each.rows for each in unread)
        graphs = graphs_bytes(self.rows, self.width)
        if self.index is not None:
            graphs = max(graphs - VERSIONS * self.index.graphs_bytes, 0)
        return vectors_bytes(rows, self.width) + sum(each.texts_bytes for each in unread) + graphs


def rows_at_most(revision: Revision, index: Index | None) -> int:
    """An upper bound of the rows of a revision, from what this index has read of it.

    The rest is counted by segments, which include removals and replaced rows.
    """
    stored = sum(segment.rows for segment in revision.segments)
    if index is None or index.revision < revision.born:
        return stored
    unread = sum(each.rows for each in revision.segments if each.last > index.revision)
    return min(stored, index.rows + sum(index.not_learned.values()) + unread)


@dataclass
class _Task:
    """An index that is being built for `version`; `steps` returns its builder."""

    version: ServedVersion
    steps: Steps
    began: float


class CollectionIndexer:
    """Builds the index of one collection. Used from the follower's thread; indexes are immutable."""

    def __init__(
        self, store: ObjectStore, graph_from: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._graph_from = graph_from
        self._clock = clock
        self._answering: IndexBuilder | None = None
        self._previous: IndexBuilder | None = None
        self._task: _Task | None = None
        # Not derived from the builder on access: a change may be half applied to it.
        self.index: Index | None = None

    @property
    def is_working(self) -> bool:
        """Whether there are steps to do."""
        return self._task is not None

    def forget(self) -> None:
        """Release everything."""
        self._answering = self._previous = self._task = self.index = None

    def abandon(self) -> None:
        """Abandon the index that is being built; `follow` begins again."""
        self._task = None

    def follow(self, head: Revision, version: ServedVersion) -> None:
        """Apply what was written, and begin what takes longer. Raises as `catch_up` does."""
        if self._is_of_another(head):
            self.forget()
        answering = self._answering
        continues = answering is not None and can_continue(answering, head)
        if answering is not None and continues:
            self._catch_up(answering, head)
            if self.index is None or self.index.revision != head.revision:
                self.index = answering.index()
        if answering is None or not continues or not same(answering.version, version):
            self._turn_to(head, version)
        elif self._task is not None and self._task.version is not answering.version:
            self._task = None  # The model was rolled back before that one was ready.
        elif answering.needs_graphs and self._task is None:
            self._task = _Task(answering.version, _with_graphs(answering), self._clock())

    def step(self, head: Revision) -> None:
        """Do one step; replace the index at the end. Raises as `catch_up` does."""
        task = self._task
        if task is None:
            return
        try:
            next(task.steps)
        except StopIteration as end:
            self._task = None
            self._exchange(end.value, head)
            logger.info(
                "collection %s is searched with %s, built in %.1f s",
                *(head.name, task.version.label, self._clock() - task.began),
            )

    def _turn_to(self, head: Revision, version: ServedVersion) -> None:
        previous = self._previous
        if (
            previous is not None
            and same(previous.version, version)
            and can_continue(previous, head)
        ):
            self._catch_up(previous, head)
            self._put(previous)
            self._task = None
        elif self._task is None or not _leads_to(self._task.version, version):
            self._task = _Task(version, self._steps(head, version), self._clock())

    def _steps(self, head: Revision, version: ServedVersion) -> Steps:
        answering = self._answering
        # Rows that were left out are in no part: those of a modality that this version has learned are read again.
        if (
            answering is not None
            and can_continue(answering, head)
            and answering.left_out <= version.not_learned
        ):
            return reprojected(self._store, answering, version)
        return loaded(self._store, head, IndexBuilder(version, None, self._graph_from))

    def _exchange(self, made: IndexBuilder, head: Revision) -> None:
        if not can_continue(made, head):
            return  # Deleted or purged since: the next poll begins again.
        self._catch_up(made, head)
        self._put(made)

    def _put(self, builder: IndexBuilder) -> None:
        """Make it the index that answers."""
        if builder is not self._answering:
            self._previous, self._answering = self._answering, builder
        self.index = builder.index()

    def _catch_up(self, builder: IndexBuilder, head: Revision) -> None:
        for _ in catch_up(self._store, builder, head):
            pass

    def _is_of_another(self, head: Revision) -> bool:
        """Whether the collection was deleted and created again since."""
        revision = self._answering.revision if self._answering else None
        return revision is not None and revision.born != head.born


def same(one: ServedVersion, other: ServedVersion) -> bool:
    """Versions never change, but a model can be deleted and created again under its name."""
    return one.label == other.label and one.created_at == other.created_at


def _leads_to(begun: ServedVersion, wanted: ServedVersion) -> bool:
    """Whether to finish what was begun. A newer version waits: where versions come faster than indexes are
    built, none would be ready otherwise."""
    is_older = begun.number <= wanted.number and begun.created_at <= wanted.created_at
    return begun.model == wanted.model and is_older


def _with_graphs(builder: IndexBuilder) -> Steps:
    yield from builder.build_graphs()
    return builder
