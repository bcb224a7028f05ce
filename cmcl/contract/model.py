"""A model's specification: fixed when the model is created, stored with each version."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from cmcl.contract.methods import BUILT_IN_METHODS, METHOD_ENTRY_POINTS
from cmcl.contract.modality import Frozen, Modality

WIDEST_FEATURE = 16384
FeatureWidth = Annotated[int, Field(ge=1, le=WIDEST_FEATURE)]
Precision = Literal["float32", "bfloat16"]


class TrainingSpec(Frozen):
    """How each dataset is trained."""

    epochs: int = Field(default=10, ge=1, le=1000, description="passes over the dataset")
    batch_size: int = Field(
        default=128, ge=2, le=65536, description="rows in one global batch, over all ranks"
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="sgd has a momentum of 0.9"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(
        default=1e-2, ge=0, le=1, description="decay of the change, not of the head"
    )
    temperature: float = Field(default=0.07, gt=0, le=100, description="of InfoNCE")
    learn_temperature: bool = Field(
        default=False, description="learn a temperature for each dataset, starting from this one"
    )
    unit_vectors: bool = Field(
        default=True, description="whether InfoNCE sees embeddings at unit length"
    )
    precision: Precision = Field(
        default="float32",
        description="of the matrix products of an update; heads and optimizer are float32 and "
        "moments float64 either way. bfloat16 is for GPUs, and CPUs that have it (AVX-512 BF16, AMX)",
    )
    averaged_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="the heads are the mean over this last share of the updates; 0: the last one",
    )


class ProtectionSpec(Frozen):
    """How the method `nullspace` treats earlier datasets."""

    policy: Literal["improve", "preserve"] = Field(
        default="improve",
        description="improve: earlier datasets continue to train through their moments, and their "
        "scores may improve. preserve: their scores stay the same, within max_drift",
    )
    kept_energy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the energy of earlier scores whose entries are blocked; "
        "by default 0.8 to improve and 0.95 to preserve",
    )
    max_drift: float | None = Field(
        default=None,
        gt=0,
        description="largest relative drift of an earlier dataset's scores, kept by shrinking the "
        "change; by default unlimited to improve and 0.5 to preserve",
    )
    replay_weight: float = Field(
        default=1.0, ge=0, description="of the earlier datasets' own loss, under improve"
    )
    drift_penalty: float = Field(
        default=30.0,
        ge=0,
        description="loss per unit of squared relative drift of earlier scores, under preserve",
    )
    stable_index: bool = Field(
        default=False,
        description="also protect the span of the published embeddings, so that stored vectors keep their "
        "scores against new queries",
    )

    @property
    def energy(self) -> float:
        """`kept_energy`, resolved."""
        by_policy = {"improve": 0.8, "preserve": 0.95}
        return by_policy[self.policy] if self.kept_energy is None else self.kept_energy

    @property
    def drift_bound(self) -> float | None:
        """`max_drift`, resolved; None is unlimited."""
        by_policy = {"improve": None, "preserve": 0.5}
        return by_policy[self.policy] if self.max_drift is None else self.max_drift


# Which names exist depends on what is installed, so a stored spec is valid without its method.
MethodName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


def _check_two_modalities(given: object) -> object:
    """A clearer message than pydantic's, which is about the length of a dictionary."""
    if isinstance(given, dict) and len(given) < 2:
        only = f"only {next(iter(given))!r} is given" if given else "none is given"
        raise ValueError(f"a model needs two modalities; {only}")
    return given


class ModelSpec(Frozen):
    """The specification of a model.

    `modalities` maps each modality to the width of its features; modalities can be declared long
    before the first dataset that uses them.
    """

    width: int = Field(default=256, ge=2, le=8192, description="width of the embeddings")
    modalities: Annotated[
        dict[Modality, FeatureWidth],
        Field(min_length=2, max_length=64),
        BeforeValidator(_check_two_modalities),
    ]
    method: MethodName = Field(
        default="nullspace",
        description=f"built in: {', '.join(BUILT_IN_METHODS)}; others from installed packages, by the "
        f"entry point group {METHOD_ENTRY_POINTS}",
    )
    conditioning: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="ridge of the whitening of each modality's features, relative to the largest "
        "eigenvalue of their covariance",
    )
    protection: ProtectionSpec = ProtectionSpec()
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def drift_bound(self) -> float | None:
        """The largest permitted drift of an earlier dataset; None if the method has no bound."""
        return self.protection.drift_bound if self.method == "nullspace" else None

    @property
    def heads_bytes(self) -> int:
        """Size of the heads of a version that has learned every modality: E (F + 1) weights and a map of
        F² + F numbers for each, float32."""
        return 4 * sum(
            self.width * (width + 1) + width * (width + 1) for width in self.modalities.values()
        )

    @model_validator(mode="after")
    def _size_is_bounded(self) -> Self:
        entries = sum(self.width * width for width in self.modalities.values())
        if entries > 2**30:
            raise ValueError(
                f"the heads would have {entries} entries in total, the permitted maximum is {2**30}"
            )
        return self
