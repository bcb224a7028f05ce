"""What a user decides about a model: resolved fully when it is created, stored with each version."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.contract.modality import Frozen, Modality

FeatureWidth = Annotated[int, Field(ge=1, le=16384)]


class TrainingSpec(Frozen):
    """How each dataset is trained."""

    epochs: int = Field(default=5, ge=1, le=1000, description="passes over the dataset")
    batch_size: int = Field(
        default=128, ge=2, le=65536, description="rows in one global batch, over all ranks"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(
        default=1e-2, ge=0, le=1, description="AdamW's decay, of the change and not of the head"
    )
    temperature: float = Field(default=0.07, gt=0, le=100, description="of InfoNCE")


class ProtectionSpec(Frozen):
    """How much of the earlier datasets is protected."""

    kept_energy: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="share of the trace of the earlier moments whose directions are protected",
    )
    max_drift: float = Field(
        default=0.5,
        gt=0,
        description="largest relative drift of an earlier dataset's scores with which a version is "
        "still published",
    )


class ModelSpec(Frozen):
    """The whole description of a model.

    `modalities` maps each modality to the width of its features; modalities can be declared long
    before the first dataset that uses them.
    """

    width: int = Field(default=256, ge=2, le=8192, description="width of the embeddings")
    modalities: dict[Modality, FeatureWidth] = Field(min_length=2, max_length=64)
    method: Literal["nullspace", "vanilla"] = "nullspace"
    protection: ProtectionSpec = ProtectionSpec()
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _size_is_bounded(self) -> Self:
        entries = sum(self.width * width for width in self.modalities.values())
        if entries > 2**30:
            raise ValueError(
                f"the heads would have {entries} entries in total, the permitted maximum is {2**30}"
            )
        return self
