"""Encoders of a model's modalities: the declarations, and the identities that computed its features."""

from collections.abc import Mapping
from pathlib import PurePath

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec

Declarations = Mapping[str, EncoderSpec]
Identities = Mapping[str, EncoderIdentity]


def bound_encoders(
    spec: ModelSpec, pair: ModalityPair, declarations: Declarations
) -> dict[str, EncoderSpec]:
    """Return the declarations by modality of the pair, for modalities that are bound to a declared encoder."""
    names = {modality: spec.modalities[modality].encoder for modality in pair.modalities}
    return {
        modality: declarations[name]
        for modality, name in names.items()
        if name is not None and name in declarations
    }


def mismatch(fixed: Identities, found: Identities) -> str | None:
    """Return which encoder differs from that of the model's features, and how; None if none does."""
    for modality, identity in found.items():
        difference = identity.difference(fixed[modality]) if modality in fixed else None
        if difference is not None:
            return (
                f"the encoder of {modality!r} is not the one of the model's earlier features: "
                f"{difference}"
            )
    return None


def changed_field(declaration: EncoderSpec, fixed: EncoderIdentity) -> str | None:
    """Return the first field of the declaration that contradicts the identity, in words; None if none does.

    A field without a value takes that of the model or the kind, so it contradicts nothing.
    """
    declared = declaration.model_dump()
    expected = {
        "kind": fixed.kind,
        "takes": fixed.takes,
        "width": fixed.width,
        "revision": fixed.revision,
        **{name: value for name, value in fixed.settings.items() if name in declared},
    }
    if fixed.model is not None and declaration.model is not None:
        names = (declaration.model, PurePath(declaration.model).name)
        if fixed.model not in names:
            return f"model is {names[1]!r}, expected {fixed.model!r}"
    for field, value in expected.items():
        if declared[field] is not None and declared[field] != value:
            return f"{field} is {declared[field]!r}, expected {value!r}"
    return None
