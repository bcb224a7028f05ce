"""Whether stored vectors of one version can be migrated to another, and by which map.

Shapes: E width of the embeddings, F width of the raw feature.

CannotMigrate
├── NothingLearned     the old version has no moments of the modality
├── OtherConditioning  the heads of the versions read different features
├── NothingKept        the old head maps all features to zero
└── TooInexact         the error of the map is larger than permitted
"""

from dataclasses import dataclass

from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.migrate import Migration, migration


class CannotMigrate(ValueError):
    """The message is one line in the user's terms. The reason is permanent for these versions."""


class NothingLearned(CannotMigrate):
    """There are no moments to compute a map from."""


class OtherConditioning(CannotMigrate):
    """The moments are of features that only the old version reads."""


class NothingKept(CannotMigrate):
    """The stored vectors contain no information."""


class TooInexact(CannotMigrate):
    """The predicted error exceeds what the caller permits."""


@dataclass(frozen=True)
class NumberedHeads:
    """The heads of a version, and its number."""

    version: int
    heads: ModalityHeads


def check_same_conditioning(modality: str, old: NumberedHeads, new: NumberedHeads) -> None:
    """Raises OtherConditioning. Cheap: call it before the moments are fetched."""
    if not same_conditioning(modality, old.heads, new.heads):
        raise OtherConditioning(
            f"versions {old.version} and {new.version} have conditioned {modality!r} by different "
            "first datasets: re-encode its items"
        )


def same_conditioning(modality: str, old: ModalityHeads, new: ModalityHeads) -> bool:
    """Whether the heads of both versions read the same features of the modality."""
    then, now = (heads.conditioning.get(modality) for heads in (old, new))
    if then is None or now is None:
        return then is now
    return then.equals(now)


def migration_between(
    modality: str, memory: Memory, old: NumberedHeads, new: NumberedHeads
) -> Migration:
    """The map from the pooled input moment of the old version's `memory`.

    Stored vectors are assumed to resemble the datasets of that version. Raises CannotMigrate.
    """
    inputs = memory.inputs_of(modality)
    if inputs is None:
        raise NothingLearned(
            f"version {old.version} has learned nothing of modality {modality!r}: there are no moments to "
            "migrate its vectors by"
        )
    check_same_conditioning(modality, old, new)
    try:
        return migration(inputs, old.heads.weights[modality], new.heads.weights[modality])
    except ValueError as error:
        raise NothingKept(f"vectors of {modality!r} cannot be migrated: {error}") from error


def check_error(modality: str, found: Migration, most_error: float) -> None:
    """Raises TooInexact if the predicted error (relative, 0 to 1) is larger than `most_error`."""
    if not found.predicted_error <= most_error:
        raise TooInexact(
            f"migrated vectors of {modality!r} would have a relative error of "
            f"{found.predicted_error:.2g} (rank {found.rank} of {len(found.map_EE)}, condition "
            f"{found.condition:.2g}), more than the permitted {most_error:g}: "
            "re-encode its items"
        )
