"""Encoders of a model's modalities: the declarations, and the identities that computed its features."""

from collections.abc import Mapping
from pathlib import PurePath

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from service.core.errors import Conflict, FieldProblem, Unprocessable
from service.database.rows import ModelRow
from service.datasets.request import NewDataset

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


def check_encoders(model: ModelRow, posted: NewDataset, declarations: Declarations) -> None:
    """Check the encoders that a dataset declares for its features, and the declarations for raw rows.

    Raises Unprocessable; Conflict if an encoder differs from that of the model's features.
    """
    problems = list(_misnamed(model.spec, posted))
    if problems:
        raise Unprocessable("encoders do not fit the dataset", *problems)
    for modality, identity in posted.encoders.items():
        message = mismatch(model.encoders, {modality: identity})
        if message is not None:
            raise Conflict(message, FieldProblem(f"encoders.{modality}", message))
    for modality, declaration in bound_encoders(model.spec, posted.pair, declarations).items():
        fixed = model.encoders.get(modality)
        if fixed is None or modality in posted.encoders:
            continue
        difference = changed_field(declaration, fixed)
        if difference is not None:
            message = (
                f"the declaration of encoder {declaration.name!r} has changed since it computed the "
                f"features of {modality!r} of model {model.name!r}: {difference}. Ask the operator to "
                "declare it as before, under another name for the new one"
            )
            raise Conflict(message, FieldProblem("model", message, model.name))


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


def _misnamed(spec: ModelSpec, posted: NewDataset) -> list[FieldProblem]:
    problems = []
    for modality, identity in posted.encoders.items():
        field = f"encoders.{modality}"
        if modality not in posted.pair.modalities:
            message = (
                f"{modality!r} is not in the pair; permitted: {', '.join(posted.pair.modalities)}"
            )
            problems.append(FieldProblem(field, message, modality))
        elif identity.width != spec.widths[modality]:
            message = (
                f"it has width {identity.width}, the model declares {spec.widths[modality]} for "
                f"{modality!r}"
            )
            problems.append(FieldProblem(f"{field}.width", message, identity.width))
    return problems
