"""Collections: what is put in, what is searched for, and what is found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from cmcl.types.answer import Answer


@dataclass(frozen=True)
class Query:
    """One thing of one modality: its feature, or what an encoder of the endpoint turns into one.

    Exactly one of `feature`, `text` and `data` (the bytes of a file).
    """

    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Item:
    """The same with a name, and with what is to be known about it."""

    id: str
    modality: str
    feature: Sequence[float] | None = None
    text: str | None = None
    data: bytes | None = None
    payload: Mapping[str, Any] | None = None


class Searched(Answer):
    """What the replica that was asked has in memory. `problem`: why it does not follow."""

    version: int | None = None
    revision: int | None = None
    rows: dict[str, int] = Field(default={}, description="by modality")
    memory_bytes: int = 0
    problem: str | None = None


class Collection(Answer):
    """Items that are searched with whatever version of a model is live."""

    id: str
    model: str
    feature_type: str
    revision: int = Field(description="grows with each change")
    stored_bytes: int
    damaged: str | None = Field(default=None, description="what is wrong with what is stored")
    searched: Searched | None = None


class Written(Answer):
    """A change that is stored for good. `rows`: items that were added, replaced or removed."""

    id: str
    rows: int
    revision: int


class Hit(Answer):
    """An item that was found; the larger score (a cosine) is the better one."""

    id: str
    score: float
    modality: str
    payload: dict[str, Any] | None = None


class Found(Answer):
    """Best first. `model`: name@version of the one version that made query and vectors alike."""

    data: list[Hit]
    model: str
    revision: int
    exact: bool

    @property
    def version(self) -> int:
        """The version that answered."""
        return int(self.model.rpartition("@")[2])
