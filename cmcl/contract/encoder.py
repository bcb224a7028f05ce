"""Encoders: their declaration by an operator, the identity of the features that they compute, and the files behind it."""

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, ValidationError, model_validator

from cmcl.contract.modality import NAME_PATTERN, Frozen, Sha256

WIDEST_FEATURE = 16384
FeatureWidth = Annotated[int, Field(ge=1, le=WIDEST_FEATURE)]
EncoderName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["clip-image"])
]
# What one raw item is. `numbers`: a short list of numbers, such as latitude and longitude.
Media = Literal["text", "image", "audio", "video", "numbers"]
BUILT_IN_KINDS = ("synthetic", "sentence-transformers", "transformers", "open-clip")
ENCODER_ENTRY_POINTS = "cmcl.encoders"
# A name, or the class itself: `module:Class`.
KIND_PATTERN = (
    r"^([a-z][a-z0-9_-]{0,63}|[A-Za-z_][A-Za-z0-9_.]{0,199}:[A-Za-z_][A-Za-z0-9_]{0,99})$"
)

# Weights, tokenizers, processors and configuration. Not documentation, whose change changes no feature.
SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model", ".jinja", ".tiktoken"}
)
_PICKLED = frozenset({".bin", ".pt", ".pth"})
# Other formats of the same weights, which no kind loads, and states of training.
OTHER_FOLDERS = frozenset({"onnx", "openvino", "coreml", "flax", "runs"})
OTHER_FILES = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "trainer_state.json"})

# Tokenizers read all of a text before they truncate it, in a process that all users of the encoder share.
_TEXT_BYTES, _FILE_BYTES = 64 << 10, 8 << 20


def _most_bytes(declared: dict[str, Any]) -> int:
    """Return the default of `max_item_bytes`, which depends on what the encoder takes."""
    return _TEXT_BYTES if declared.get("takes") == "text" else _FILE_BYTES


class EncoderSpec(Frozen):
    """An encoder as an operator declares it, once for preparation and for the endpoint.

    Models bind a modality to it by its name. Its features are identified by what was loaded
    (`EncoderIdentity`), not by this declaration.
    """

    name: EncoderName = Field(description="by which models bind a modality to it")
    kind: Annotated[str, StringConstraints(pattern=KIND_PATTERN)] = Field(
        description=f"built in: {', '.join(BUILT_IN_KINDS)}; others from installed packages, by the "
        f"entry point group {ENCODER_ENTRY_POINTS}, or any class as `module:Class`. `synthetic` hashes "
        "its input, for tests"
    )
    takes: Media = Field(description="what one raw item is")
    width: FeatureWidth = Field(description="of its features; checked when the encoder starts")
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="a folder on the nodes, or a name in their cache",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="commit of a model that is a name"
    )
    download: bool = Field(
        default=False,
        description="whether a model that is not cached may be fetched from its hub; needs `revision`",
    )
    method: str | None = Field(
        default=None,
        max_length=64,
        description="of kind transformers: the model's method that computes features, such as "
        "get_image_features; by default the model's forward pass",
    )
    pooling: Literal["pooler", "mean", "cls", "none"] | None = Field(
        default=None,
        description="of kind transformers: how the output becomes one vector; by default pooler",
    )
    normalize: bool = Field(default=False, description="whether features are scaled to unit length")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="of a text; longer ones are truncated. By default as in the model",
    )
    window_seconds: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="of audio and video: length of a window; by default the whole item",
    )
    windows: int = Field(
        default=1,
        ge=1,
        le=64,
        description="of audio and video: evenly spaced windows whose features are averaged",
    )
    frames: int = Field(default=8, ge=1, le=256, description="of video: frames in one window")
    options: dict[str, JsonValue] = Field(
        default={}, description="further settings of a kind from an installed package"
    )
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:[0-9]+)?)$")] | None = Field(
        default=None, description="by default cuda where it reserves GPUs, else cpu"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="of its weights and products"
    )
    replicas: int = Field(default=1, ge=1, le=1000, description="processes of the endpoint")
    actors: int = Field(default=1, ge=1, le=1000, description="most processes of preparation")
    num_cpus: float = Field(
        default=1,
        ge=0,
        le=256,
        description="Ray CPUs that each process reserves, unless it has its own node; also its threads",
    )
    num_gpus: float = Field(default=0, ge=0, le=16, description="Ray GPUs that each reserves")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="custom Ray resources that each reserves: nodes whose image has its packages",
    )
    max_batch: int = Field(default=32, ge=1, le=4096, description="items in one pass")
    batch_wait_seconds: float = Field(
        default=0,
        ge=0,
        le=1,
        description="how long a pass of the endpoint waits for more items; items that arrive during a "
        "pass share the next one anyway",
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
        default_factory=_most_bytes,
        ge=1,
        le=256 << 20,
        description=f"of one text or file; by default {_TEXT_BYTES} of a text and {_FILE_BYTES} of a file",
    )
    max_pixels: int = Field(
        default=64_000_000, ge=1, le=150_000_000, description="of one image or video frame"
    )
    max_seconds: float = Field(default=600, gt=0, le=86_400, description="of one audio or video")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        needs_model = ("sentence-transformers", "transformers", "open-clip")
        if self.kind in needs_model and self.model is None:
            raise ValueError(f"encoder {self.name!r} needs a model: a folder or a name")
        if self.kind == "synthetic" and self.model is not None:
            raise ValueError(
                f"encoder {self.name!r} is synthetic, so it has no model, got {self.model!r}"
            )
        if self.download and self.revision is None:
            raise ValueError(
                f"encoder {self.name!r} downloads its model: set revision to a commit, so that it "
                "stays the same"
            )
        return self

    @model_validator(mode="after")
    def _a_gpu_is_reserved(self) -> Self:
        if self.device is not None and self.device.startswith("cuda") and self.num_gpus == 0:
            raise ValueError(
                f"encoder {self.name!r} has device {self.device!r} and num_gpus 0: Ray makes only "
                "those GPUs visible to a process that it reserves"
            )
        return self

    @property
    def placed_on(self) -> str:
        """`device`, or what suits the GPUs that it reserves."""
        return self.device or ("cuda" if self.num_gpus else "cpu")

    @property
    def title(self) -> str:
        """The kind and the model, without its folder, for answers."""
        return f"{self.kind}/{PurePath(self.model).name}" if self.model else self.kind


class EncoderIdentity(Frozen):
    """Everything that decides the features of an encoder, as determined by the process that loaded it.

    Two encoders with equal identities compute equal features, to rounding. `versions` are informative:
    whether another version of a library still computes the same is decided by the fingerprint.
    """

    kind: str
    adapter: int = Field(ge=1, description="version of the code around the model")
    model: str | None = Field(description="name, or the last part of the folder")
    revision: str | None = None
    files: Sha256 | None = Field(
        default=None, description="SHA-256 over weights, tokenizer and processor files"
    )
    takes: Media
    width: FeatureWidth
    settings: dict[str, str | int | float | bool | None] = Field(
        default={},
        description="pooling, normalization, token limit, windows, sampling rate, frames, dtype, ...",
    )
    versions: dict[str, str] = Field(default={}, description="of libraries, when it was recorded")

    @property
    def digest(self) -> str:
        """SHA-256 of everything but `versions`."""
        decisive = self.model_dump(mode="json", exclude={"versions"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def difference(self, other: "EncoderIdentity") -> str | None:
        """Describe the first field that differs: its value here, and in `other`; None if none does."""
        mine, its = (each.model_dump(exclude={"versions"}) for each in (self, other))
        settings, others = mine.pop("settings"), its.pop("settings")
        fields = [*mine, *sorted(settings.keys() | others.keys())]
        mine, its = mine | settings, its | others
        for field in fields:
            if mine.get(field) != its.get(field):
                return f"{field} is {mine.get(field)!r}, expected {its.get(field)!r}"
        return None


class EncoderRecord(Frozen):
    """`encoders/<digest>.json`: an identity, and its features of the probe items.

    A process that loads an encoder for this identity starts only if each of its own features of the probe
    items has a cosine of at least 0.9999 with the recorded one.
    """

    identity: EncoderIdentity
    probe: str = Field(description="features of the probe items, row by row, float32, base64")

    @property
    def probe_bytes(self) -> bytes:
        """The float32 numbers of the features, row by row."""
        return base64.b64decode(self.probe)


def parse_encoder(text: str) -> EncoderSpec:
    """`NAME=KIND:TAKES:WIDTH[:MODEL]`, or the whole declaration as JSON. Raises ValueError."""
    try:
        if text.lstrip().startswith("{"):
            return EncoderSpec.model_validate_json(text)
        name, equals, rest = text.partition("=")
        kind, takes, width, model = [*rest.split(":", 3), "", "", "", ""][:4]
        if not (equals and kind and takes and width):
            raise ValueError(
                f"encoder {text!r} is not of the form NAME=KIND:TAKES:WIDTH[:MODEL], for example "
                "minilm=sentence-transformers:text:384:/models/minilm"
            )
        fields = {"name": name, "kind": kind, "takes": takes, "width": width}
        return EncoderSpec.model_validate({**fields, "model": model or None})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"encoder {text!r}: {where}{reason}") from error


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model on this node, as they were when it was loaded.

    `name`: as in its identity. `digest`: SHA-256 over their names in the folder and their contents.
    `revision`: the commit of a cached model.
    """

    name: str
    folder: Path
    digest: str
    revision: str | None = None

    @classmethod
    def of(
        cls, name: str, folder: Path, paths: Iterable[Path], revision: str | None = None
    ) -> "ModelFiles":
        """These files of a folder, in any order."""
        by_name = {path.relative_to(folder).as_posix(): path for path in paths}
        digest = hashlib.sha256()
        for relative, path in sorted(by_name.items()):
            digest.update(f"{_digest_of(path)}  {relative}\n".encode())
        return cls(name, folder, digest.hexdigest(), revision)

    @classmethod
    def in_folder(
        cls, folder: Path, name: str | None = None, revision: str | None = None
    ) -> "ModelFiles":
        """All files of a model's folder that decide its features."""
        paths = [path for path in folder.rglob("*") if _decides(path, folder)]
        return cls.of(name or folder.resolve().name, folder, paths, revision)


def _decides(path: Path, folder: Path) -> bool:
    relative = path.relative_to(folder)
    if any(part.startswith(".") or part in OTHER_FOLDERS for part in relative.parts):
        return False
    if path.suffix not in SUFFIXES or path.name in OTHER_FILES or not path.is_file():
        return False
    # Where weights are there in both formats, the pickled ones are not loaded.
    return path.suffix not in _PICKLED or not any(path.parent.glob("*.safetensors"))


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _hash(path.resolve(), (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4096)
def _hash(path: Path, _version: tuple[int, int]) -> str:
    """Hashed once in a process for each size and time of change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ComparedFeatures(Frozen):
    """How well features of one encoder pair.

    `agreement`: of heads of one half of the pairs on the other half, mean over divisions into halves, and its sample
    deviation. `directions`: how many are significant, None beyond those that are counted. `behind`: mean difference to the
    best one, and the standard error of that, corrected for divisions of the same pairs (Nadeau and Bengio 2003).
    """

    name: str
    widths: tuple[int, int]
    agreement: float
    agreement_std: float
    directions: int | None
    behind: float
    behind_error: float

    @property
    def is_behind(self) -> bool:
        """Whether the best one is better by more than chance: by two standard errors."""
        return self.behind > 2 * self.behind_error


class EncoderComparison(Frozen):
    """Features of the same pairs by several encoders, the best one first."""

    pairs: int
    splits: int
    features: tuple[ComparedFeatures, ...]

    @property
    def verdict(self) -> str:
        """Which one pairs best, or which are not worse by more than chance."""
        best, *others = self.features
        equal = [other.name for other in others if not other.is_behind]
        if equal:
            return f"{best.name} is not better than {', '.join(equal)} by more than chance"
        return f"{best.name} pairs best"
