"""May stored vectors of one version be turned into those of another, and by which map?

Shapes: E width of the embeddings, F width of the raw feature.

CannotMigrate
├── NothingLearned     the old version has no moments of the modality
├── OtherConditioning  the versions do not read the same features
├── NothingKept        the old head maps all features to zero
└── TooInexact         the map is there, and its error is larger than permitted
"""

from dataclasses import dataclass

from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.nullspace.migrate import Migration, migration


class CannotMigrate(ValueError):
    """One line in the user's words; it holds for as long as both versions exist."""


class NothingLearned(CannotMigrate):
    """There are no moments to find a map by."""


class OtherConditioning(CannotMigrate):
    """The moments are of features as the old version conditions them, and the new one does not."""


class NothingKept(CannotMigrate):
    """The stored vectors hold nothing."""


class TooInexact(CannotMigrate):
    """The vectors would be further off than the caller permits."""


@dataclass(frozen=True)
class NumberedHeads:
    """The heads of a version, and the number that users know it by."""

    version: int
    heads: ModalityHeads


def nothing_learned(modality: str, version: int) -> NothingLearned:
    """What to raise where the version has no moments of the modality."""
    return NothingLearned(
        f"version {version} has learned nothing of modality {modality!r}: there are no moments to "
        "migrate its vectors by"
    )


def check_same_conditioning(modality: str, old: NumberedHeads, new: NumberedHeads) -> None:
    """Cheap, so it is asked before the moments are fetched. Raises OtherConditioning."""
    if not same_conditioning(modality, old.heads, new.heads):
        raise OtherConditioning(
            f"versions {old.version} and {new.version} have conditioned {modality!r} by different "
            "first datasets: encode its items anew"
        )


def same_conditioning(modality: str, old: ModalityHeads, new: ModalityHeads) -> bool:
    """Whether both versions have learned the modality from the same first dataset."""
    then, now = (heads.conditioning.get(modality) for heads in (old, new))
    return then is not None and now is not None and then.equals(now)


def migration_between(
    modality: str, memory: Memory, old: NumberedHeads, new: NumberedHeads
) -> Migration:
    """The map by the pooled input moment of the old version's `memory`.

    The stored vectors are taken to resemble the datasets of that version. Raises CannotMigrate.
    """
    inputs = memory.inputs_of(modality)
    if inputs is None:
        raise nothing_learned(modality, old.version)
    check_same_conditioning(modality, old, new)
    try:
        return migration(inputs, old.heads.weights[modality], new.heads.weights[modality])
    except ValueError as error:
        raise NothingKept(f"vectors of {modality!r} cannot be migrated: {error}") from error


def check_error(modality: str, found: Migration, most_error: float) -> None:
    """Raises TooInexact where the predicted error is larger (relative, 0 to 1)."""
    if not found.predicted_error <= most_error:
        raise TooInexact(
            f"migrated vectors of {modality!r} would have a relative error of "
            f"{found.predicted_error:.2g} (rank {found.rank} of {len(found.map_EE)}, condition "
            f"{found.condition:.2g}), more than the permitted {most_error:g}: "
            "encode its items anew"
        )
