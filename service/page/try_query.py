"""What the page to try a model is asked: the item, where its neighbours are sought, and by which versions."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cmcl.contract.modality import NAME_PATTERN
from service.api.models import ModelView
from service.api.pagination import LARGEST_NUMBER
from service.api.versions import VersionSummary
from service.errors import FieldProblem, Unprocessable
from service.page.forms import none_if_empty

LONGEST_TEXT = 2_000
LONGEST_NUMBERS = 30_000
_COLLECTION, _DATASET = "collection:", "dataset:"

_empty = BeforeValidator(none_if_empty)
Number = Annotated[Annotated[int, Field(ge=1, le=LARGEST_NUMBER)] | None, _empty]
Name = Annotated[Annotated[str, Field(pattern=NAME_PATTERN)] | None, _empty]


class Wanted(BaseModel):
    """What the address asks for. A field left empty is not given."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: Name = None
    modality: Name = None
    text: Annotated[Annotated[str, Field(max_length=LONGEST_TEXT)] | None, _empty] = None
    numbers: Annotated[Annotated[str, Field(max_length=LONGEST_NUMBERS)] | None, _empty] = None
    row: Annotated[Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] | None, _empty] = None
    where: Annotated[
        Annotated[str, Field(pattern=r"^(collection:[a-z0-9-]{1,48}|dataset:[A-Za-z0-9-]{1,80})$")]
        | None,
        _empty,
    ] = None
    among: Name = None
    version: Number = None
    other: Number = None
    offset: Annotated[int, Field(ge=0, le=LARGEST_NUMBER)] = 0

    @property
    def collection(self) -> str | None:
        """The collection to search, if it is one."""
        return (
            self.where.removeprefix(_COLLECTION)
            if self.where and _COLLECTION in self.where
            else None
        )

    @property
    def dataset(self) -> str | None:
        """The dataset to search, if it is one."""
        return self.where.removeprefix(_DATASET) if self.where and _DATASET in self.where else None

    @property
    def versions(self) -> list[int | None]:
        """The versions that are asked; None: the live one."""
        return [self.version] if self.other is None else [self.version, self.other]


@dataclass(frozen=True)
class Offer:
    """What can be chosen: models, and of the chosen one its versions and datasets with held-out rows (id and name)."""

    models: list[str]
    model: ModelView | None
    versions: list[VersionSummary]
    datasets: list[tuple[str, str]]
    # By modality: what its encoder takes.
    takes: dict[str, str]


def modality_of(wanted: Wanted, offer: Offer) -> str:
    """The modality of the item. Raises Unprocessable."""
    known = list(offer.model.modalities) if offer.model else []
    if wanted.modality not in known:
        message = f"permitted: {', '.join(known)}"
        raise Unprocessable(
            "choose the modality of the item", FieldProblem("modality", message, wanted.modality)
        )
    return wanted.modality


def item_of(wanted: Wanted, offer: Offer) -> dict[str, Any] | None:
    """The item in the form of the endpoint; None if nothing is asked for yet. Raises Unprocessable."""
    given = {
        name: getattr(wanted, name)
        for name in ("text", "numbers", "row")
        if getattr(wanted, name) is not None
    }
    if not given:
        return None
    if len(given) > 1:
        message = f"{' and '.join(given)} are given; give one of text, numbers and row"
        raise Unprocessable(message, *(FieldProblem(name, "give one of them") for name in given))
    modality = modality_of(wanted, offer)
    if wanted.row is not None:
        if wanted.dataset is None:
            message = "choose the dataset of the row to search in"
            raise Unprocessable(message, FieldProblem("where", message, wanted.where))
        return {"row": wanted.row, "modality": modality}
    if wanted.text is not None:
        return {"modality": modality, "text": wanted.text}
    field = "numbers" if offer.takes.get(modality) == "numbers" else "feature"
    return {"modality": modality, field: _numbers(wanted.numbers or "")}


def _numbers(text: str) -> list[float]:
    parts = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        message = "give numbers, separated by commas or spaces"
        raise Unprocessable(message, FieldProblem("numbers", message, text[:80])) from error
