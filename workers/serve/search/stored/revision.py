"""What a collection consists of at one moment: the document that makes a change visible."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cmcl.contract.modality import NAME_PATTERN, Frozen, ModelName, Sha256

CollectionName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["street-photos"])
]
FeatureType = Literal["float32", "float16"]


class Segment(Frozen):
    """Rows that were written together, in a file that never changes.

    Of two rows with the same id the one in the later segment counts.
    """

    name: str
    sha256: Sha256
    bytes: int = Field(ge=1)
    rows: int = Field(ge=1, description="rows in the file: removals count, and what was replaced")
    first: int = Field(ge=1, description="the revision of the earliest change in it")
    last: int = Field(ge=1, description="the revision of the latest change in it")


class Dropped(Frozen):
    """A segment that counts no more, kept for a while for those who are reading it.

    Or a name of none: with the mark of a deletion, by which that is known if it comes again.
    """

    name: str
    at: datetime


class Revision(Frozen):
    """`collections/<name>/revisions/<n>.json`: whoever makes revision n + 1 first has made it.

    `change` is a name of its own for each attempt to make one, and `parent` is that of the revision
    before: so it can be told whether what comes next was built on what one wrote.
    """

    format: Literal[1] = 1
    name: CollectionName
    revision: int = Field(ge=1)
    change: str
    parent: str | None
    born: int = Field(ge=1, description="the revision that created it, again if it was deleted")
    model: ModelName
    owner: str | None = Field(description="None: whoever may ask at all may ask for it")
    feature_type: FeatureType
    created_at: datetime
    changed_at: datetime
    deleted: bool = False
    segments: tuple[Segment, ...] = Field(default=(), description="in the order of their changes")
    dropped: tuple[Dropped, ...] = ()
    purged: int = Field(
        default=0,
        description="removals up to this revision are gone: who has seen fewer must read everything",
    )

    @property
    def frees_name(self) -> bool:
        """Whether this is the sweep's mark: nothing follows it, and all revisions are being removed.

        A user deletes what was born earlier. It has no field of its own, so that replicas of the
        release before can read it.
        """
        return self.deleted and self.born == self.revision
