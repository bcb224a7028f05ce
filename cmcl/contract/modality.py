"""Modalities, pairs of modalities, and patterns of names."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# Lower case and DNS-like, because names end up in object keys, URLs, metric labels and Ray job ids.
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"
MODALITY_PATTERN = r"^[a-z][a-z0-9_]{0,31}$"

ModelName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["street-scenes"])
]
Modality = Annotated[str, StringConstraints(pattern=MODALITY_PATTERN), Field(examples=["image"])]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Blake3 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Base of every contract model: immutable; unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(Frozen):
    """A file that belongs to a version; every reader checks the digest itself."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class ModalityPair(Frozen):
    """Two different modalities. `first` is column `feature_a` of a shard, `second` is `feature_b`."""

    first: Modality
    second: Modality

    @model_validator(mode="after")
    def _must_differ(self) -> Self:
        if self.first == self.second:
            raise ValueError(f"a pair needs two different modalities, got {self.first!r} twice")
        return self

    @property
    def modalities(self) -> tuple[str, str]:
        return (self.first, self.second)

    def swapped(self) -> "ModalityPair":
        """The same pair in the opposite order."""
        return ModalityPair(first=self.second, second=self.first)

    @property
    def key(self) -> str:
        """An identifier that is the same for (a, b) and (b, a)."""
        return "--".join(sorted(self.modalities))

    def __str__(self) -> str:
        return f"{self.first},{self.second}"
