"""A candidate on trial beside the live version of a model, as one replica has it now."""

from dataclasses import dataclass

from workers.contract.modality import ModalityPair
from workers.serve.versions.loading import ServedVersion


@dataclass(frozen=True)
class Trial:
    """`candidate` is None while the replica has not loaded it, or cannot; `refused` says why.

    `pairs`: what the live version has learned; across other pairs its scores mean nothing.
    """

    model: str
    revision: int
    version: int
    live: ServedVersion
    candidate: ServedVersion | None
    shadow: float
    pairs: frozenset[ModalityPair]
    refused: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Counts are kept by it: a trial that begins again begins at zero."""
        return (self.model, self.revision)
