"""Settings of the encoder of one modality: an element of `ServeArgs.encoders`.

`python -m workers.serve.encoders.spec TEXT...` checks texts that name encoders.
"""

import sys
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from cmcl.contract.modality import Frozen, Modality
from cmcl.contract.model import FeatureWidth

# More than one pass, so that the next one is full when the present one ends; items beyond that wait in the
# replica that sent them.
PASSES_AHEAD = 4

EncoderKind = Literal["synthetic", "sentence-transformers"]
RawKind = Literal["text", "bytes"]


class EncoderSpec(Frozen):
    """One encoder. Features must come from the encoder that made the datasets' features."""

    modality: Modality = Field(description="of the raw items that it reads")
    kind: EncoderKind = Field(
        description="`synthetic` hashes its input, for tests: equal inputs have equal features, and nothing else"
    )
    width: FeatureWidth = Field(description="of its features; checked when the encoder starts")
    takes: RawKind | None = Field(
        default=None,
        description="texts, or the bytes of files; by default texts for the modality `text`, and "
        "bytes for any other",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="of sentence-transformers: a folder on the nodes, or a name in their cache",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="commit of a model that is a name"
    )
    download: bool = Field(
        default=False, description="whether a model that is not cached may be fetched from its hub"
    )
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:[0-9]+)?)$")] | None = Field(
        default=None, description="by default cuda where it reserves GPUs, else cpu"
    )
    replicas: int = Field(default=1, ge=1, le=1000, description="processes that encode")
    num_cpus: float = Field(
        default=1,
        ge=0,
        le=256,
        description="Ray CPUs that each reserves where it does not have its own node, and its threads",
    )
    num_gpus: float = Field(default=0, ge=0, le=16, description="Ray GPUs that each reserves")
    max_batch: int = Field(default=32, ge=1, le=4096, description="items in one pass")
    batch_wait_seconds: float = Field(
        default=0,
        ge=0,
        le=1,
        description="how long a pass waits for more items; items that arrive during a pass share the "
        "next one anyway",
    )
    max_queued: int = Field(
        default=8192,
        ge=1,
        description="items that one replica of the endpoint may have at the encoder, before 429",
    )
    answer_seconds: float = Field(
        default=10, gt=0, le=600, description="how long the endpoint waits for it, before 503"
    )
    max_item_bytes: int = Field(
        default=8 << 20, ge=1, le=256 << 20, description="of one text or file; a longer one is 400"
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="of a text; longer ones are truncated. By default as in the model",
    )
    max_pixels: int = Field(
        default=64_000_000, ge=1, le=150_000_000, description="of one image; a larger one is 400"
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "sentence-transformers" and self.model is None:
            raise ValueError(f"the encoder of {self.modality!r} needs a model: a folder or a name")
        if self.kind == "synthetic" and self.model is not None:
            raise ValueError(
                f"the encoder of {self.modality!r} is synthetic, so it has no model, got "
                f"{self.model!r}"
            )
        return self

    @model_validator(mode="after")
    def _a_gpu_is_booked(self) -> Self:
        if self.device is not None and self.device.startswith("cuda") and self.num_gpus == 0:
            raise ValueError(
                f"the encoder of {self.modality!r} has device {self.device!r} and num_gpus 0: Ray "
                "makes only those GPUs visible to a process that it reserves"
            )
        return self

    @property
    def raw(self) -> RawKind:
        """`takes`, or what suits the modality."""
        return self.takes or ("text" if self.modality == "text" else "bytes")

    @property
    def placed_on(self) -> str:
        """`device`, or what suits what it books."""
        return self.device or ("cuda" if self.num_gpus else "cpu")

    @property
    def name(self) -> str:
        """The name in answers, without the folder."""
        return f"{self.kind}/{PurePath(self.model).name}" if self.model else self.kind


def parse_encoder(text: str) -> EncoderSpec:
    """`MODALITY=KIND:WIDTH[:MODEL]`, or the whole specification as JSON. Raises ValueError."""
    if text.lstrip().startswith("{"):
        return EncoderSpec.model_validate_json(text)
    modality, equals, rest = text.partition("=")
    kind, colon, rest = rest.partition(":")
    width, _, model = rest.partition(":")
    if equals and kind not in get_args(EncoderKind):
        raise ValueError(
            f"encoder {text!r}: kind {kind!r} is unknown; use {modality}=synthetic:384 or "
            f"{modality}=sentence-transformers:384:MODEL"
        )
    if not (equals and colon):
        raise ValueError(f"encoder {text!r} is not of the form MODALITY=KIND:WIDTH[:MODEL]")
    fields = {"modality": modality, "kind": kind, "width": width, "model": model or None}
    return EncoderSpec.model_validate(fields)


def main(texts: Sequence[str]) -> None:
    """Exit with status 1 and one line on stderr at the first text that `parse_encoder` refuses."""
    for text in texts:
        try:
            parse_encoder(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            sys.exit(f"{text!r}: {where}{first['msg'].removeprefix('Value error, ')}")
        except ValueError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
