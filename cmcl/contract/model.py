"""A model's specification, fixed when it is created but for modalities that are added; and its gate, which can be changed."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from cmcl.contract.encoder import EncoderName, FeatureWidth
from cmcl.contract.methods import BUILT_IN_METHODS, METHOD_ENTRY_POINTS, Priority
from cmcl.contract.modality import Frozen, Modality, ModalityPair

# Random features by default where heads are solved from moments: the most, and for each number of a feature.
_LARGEST_LIFT, _LIFT_FOR_EACH = 1024, 8


def default_lift(width: int) -> int:
    """Random features that are appended to features of this width, where heads are solved from moments."""
    return min(_LARGEST_LIFT, _LIFT_FOR_EACH * width)


Precision = Literal["float32", "bfloat16"]


Policy = Literal["improve", "preserve"]
# The bound of `preserve` where none is given. It lies above the drift of all datasets of our streams, 0.2 to 0.3.
_LARGEST_DRIFT = 0.5


class TrainingSpec(Frozen):
    """How heads are trained: on the rows of a dataset, or under `improve` on rows drawn from moments."""

    epochs: int = Field(
        default=10, ge=1, le=1000, description="passes over the dataset; not under improve"
    )
    batch_size: int = Field(
        default=128, ge=2, le=65536, description="rows in one global batch, over all ranks"
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="of AdamW; not under improve"
    )
    temperature: float = Field(default=0.07, gt=0, le=100, description="of InfoNCE")
    precision: Precision = Field(
        default="float32",
        description="of the matrix products of an update; heads and optimizer are float32 and "
        "moments float64 either way. bfloat16 is for GPUs, and CPUs that have it (AVX-512 BF16, AMX)",
    )


# Which names exist depends on what is installed, so a stored spec is valid without its method.
MethodName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


class ModalitySpec(Frozen):
    """One modality of a model. A number alone is short for its width."""

    width: FeatureWidth = Field(description="of its features")
    encoder: EncoderName | None = Field(
        default=None,
        description="declared encoder that computes its features, for datasets and queries of raw items; "
        "None: features alone",
    )
    aligned_to: Modality | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="modality of the same items by another encoder, whose embeddings its head reproduces; it changes "
        "no other head. Only under the policy improve",
    )


def _policy_beside(given: dict[str, object]) -> Policy | None:
    """The policy of a model that names none, by the fields before it."""
    return None if given.get("method") else "improve"


def as_modality(given: object) -> object:
    """A width alone as a modality without an encoder."""
    return {"width": given} if isinstance(given, int) and not isinstance(given, bool) else given


def check_two_modalities(given: object) -> object:
    """A clearer message than pydantic's, which is about the length of a dictionary."""
    if isinstance(given, dict) and len(given) < 2:
        only = f"only {next(iter(given))!r} is given" if given else "none is given"
        raise ValueError(f"a model needs two modalities; {only}")
    return given


class ModelOptions(Frozen):
    """A specification without its modalities."""

    width: int = Field(default=256, ge=2, le=8192, description="width of the embeddings")
    method: MethodName | None = Field(
        default=None,
        description=f"a method in place of a policy: {', '.join(BUILT_IN_METHODS)} (no protection), or one from an "
        f"installed package, by the entry point group {METHOD_ENTRY_POINTS}",
    )
    policy: Policy | None = Field(
        default_factory=_policy_beside,
        description="improve (default): all heads are solved from the moments of all datasets, in any order, and "
        "earlier scores may improve. preserve: the first dataset of two modalities is solved, later ones are trained "
        "on rows, and earlier scores stay the same, within max_drift. null: a model with a method",
    )
    max_drift: float | None = Field(
        default=None,
        gt=0,
        description="largest relative drift of an earlier dataset's scores, kept by shrinking the "
        f"change; by default {_LARGEST_DRIFT} under preserve, else unlimited",
    )
    kept_energy: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="share of the energy of earlier scores whose entries are blocked, under preserve; less leaves "
        "more of the heads to later datasets",
    )
    centred: bool = Field(
        default=True,
        description="under the policy improve: whether features in a narrow cone are centred by the mean of their "
        "modality's first dataset, which stays a constant of the model. False: heads depend on no dataset but through "
        "its moments, in any order, and any two models of the same specification can be merged",
    )
    erasable: bool = Field(
        default=False,
        exclude_if=lambda erasable: not erasable,
        description="under the policy improve: whether single rows of its datasets can be erased later. Exact sums of both "
        "halves of each dataset and eight bytes of each row are kept for it, about six times the bytes of its moments",
    )
    lift: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="number of random features relu(x R) that are appended to the features x of each modality, "
        "from 0 (none) to 4096. More of them raise recall, and moments and the time of a solution grow with the "
        f"square of the width. By default, under the policy improve, {_LARGEST_LIFT} or {_LIFT_FOR_EACH} times the "
        "modality's width if that is less, and 0 under other policies",
    )
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _a_policy_or_a_method(self) -> Self:
        if (self.policy is None) == (self.method is None):
            raise ValueError(
                f"policy is {self.policy!r} and method is {self.method!r}; a model has one of the two"
            )
        if self.method and self.max_drift is not None:
            raise ValueError(
                f"max_drift is {self.max_drift:g}, and the method {self.method!r} keeps no bound; it needs a policy"
            )
        if self.erasable and self.policy != "improve":
            raise ValueError(
                "erasable is true, and heads that were trained on rows hold what each row taught; it needs the policy improve"
            )
        return self


class ModelSpec(ModelOptions):
    """The specification of a model.

    Modalities can be declared long before the first dataset that uses them, and added later.
    """

    modalities: Annotated[
        dict[Modality, Annotated[ModalitySpec, BeforeValidator(as_modality)]],
        Field(min_length=2, max_length=64),
        BeforeValidator(check_two_modalities),
    ]

    @property
    def widths(self) -> dict[str, int]:
        """The width of each modality's features."""
        return {name: modality.width for name, modality in self.modalities.items()}

    @property
    def learning(self) -> str:
        """The policy, or the method in place of one."""
        return self.policy or self.method or ""

    @property
    def drift_bound(self) -> float | None:
        """The largest permitted drift of an earlier dataset; None is unlimited."""
        if self.policy is None:
            return None
        by_default = _LARGEST_DRIFT if self.policy == "preserve" else None
        return by_default if self.max_drift is None else self.max_drift

    @property
    def heads_bytes(self) -> int:
        """Size of the heads of a version that has learned every modality: E (F + K + 1) weights and F K random
        numbers for each, and of its conditioning F + 1, or F² + F where heads are not solved; float32."""
        numbers = 0
        for width in self.widths.values():
            lift = self.lift_for(width)
            numbers += self.width * (width + lift + 1) + width * lift
            numbers += width + (1 if self.solves else width * width)
        return 4 * numbers

    @property
    def solves(self) -> bool:
        """Whether heads are solved from moments, and not trained on rows."""
        return self.policy == "improve"

    def aligned(self, pair: ModalityPair) -> Modality | None:
        """The modality of the pair that is aligned to the other one, if one is."""
        for name, other in (pair.modalities, pair.swapped().modalities):
            if self.modalities[name].aligned_to == other:
                return name
        return None

    @property
    def fewest_rows(self) -> int:
        """The fewest rows of a dataset to learn: a batch, where rows are trained on."""
        # One row has no variance.
        return 2 if self.solves else self.training.batch_size

    def lift_for(self, width: int) -> int:
        """K of a modality with features of this width: `lift`, or its default for the policy."""
        if self.lift is not None:
            return self.lift
        return default_lift(width) if self.solves else 0

    @model_validator(mode="after")
    def _aligned_to_another(self) -> Self:
        for name, modality in self.modalities.items():
            target = modality.aligned_to
            if target is None:
                continue
            known = self.modalities.get(target)
            if target == name or known is None or known.aligned_to is not None:
                permitted = [
                    other
                    for other, each in self.modalities.items()
                    if other != name and each.aligned_to is None
                ]
                raise ValueError(
                    f"{name!r} is aligned to {target!r}; permitted: {', '.join(permitted) or 'none'}"
                )
            if not self.solves:
                raise ValueError(
                    f"{name!r} is aligned to {target!r}, which needs the policy improve; the model has {self.learning!r}"
                )
        return self

    @model_validator(mode="after")
    def _size_is_bounded(self) -> Self:
        entries = sum(self.width * (width + self.lift_for(width)) for width in self.widths.values())
        if entries > 2**30:
            raise ValueError(
                f"the heads would have {entries} entries in total, the permitted maximum is {2**30}"
            )
        return self


Bounds = Literal["set", "auto"]


class Gate(Frozen):
    """Conditions that a candidate's report must meet, and the `priority` of the model's jobs.

    A bound that is not set is not checked. The values at the time of the judgement count. A candidate
    that violates a bound is rejected with the reason, and the next dataset starts from the newest
    version; after a change of the gate, its job can be retried. If a bound needs held-out rows and there are
    none, the candidate is rejected too.
    """

    bounds: Bounds = Field(
        default="set",
        description="auto: bounds of overlap and backward transfer that are not set follow from what the two halves of each "
        "dataset differ in by chance, and so does one of how the new pairs agree. A candidate that violates one is held "
        "until a user approves or rejects it. Only the policy improve has halves",
    )
    max_drift: float | None = Field(
        default=None,
        gt=0,
        description="largest relative drift of an earlier dataset's scores since it was learned; "
        "default: the specification's bound (max_drift), if any",
    )
    min_backward_transfer: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="smallest mean change of R@1 of the earlier datasets since each was learned; "
        "-0.02 permits a loss of two points",
    )
    min_overlap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="smallest share of the ten best results on an earlier dataset that stay the same from the parent: "
        "of its held-out rows, or without these as expected from its moments",
    )
    min_gain: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="smallest gain in R@1 on the new dataset's held-out rows over the parent",
    )
    manual_approval: bool = Field(
        default=False, description="hold each candidate that passes until a user approves it"
    )
    priority: Priority = Field(
        default="normal",
        description="priority of the model's jobs among those of its owner: high starts as if it had waited for an hour "
        "longer, low for an hour less. Other owners are passed only where the operator grants it. Running attempts are "
        "not preempted",
    )

    @property
    def needs_every_dataset(self) -> bool:
        """Whether a bound is about all earlier datasets."""
        bounds = (self.max_drift, self.min_backward_transfer, self.min_overlap)
        return any(bound is not None for bound in bounds)
