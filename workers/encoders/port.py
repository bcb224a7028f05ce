"""The port of frozen encoders, which preparation and the endpoint share; their kinds, and loading one.

Shapes: B items, F width of the raw feature, V rows of a pass: one for each window of each item.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cmcl.contract.encoder import ENCODER_ENTRY_POINTS, EncoderIdentity, EncoderSpec

if TYPE_CHECKING:
    from workers.encoders.media import Decoded, Raw

ItemT = TypeVar("ItemT")
Float32Array = npt.NDArray[np.float32]


class EncoderUnusable(Exception):
    """The encoder cannot start: a package or the model is missing, or its width is not the declared one."""


class EncoderMismatch(Exception):
    """The encoder is not the one that computed the earlier features."""


class FrozenEncoder(ABC, Generic[ItemT]):
    """Base class of all kinds, built in or not.

    Built from a declaration, on its device; building raises EncoderUnusable. `load_encoder` builds
    one, checks its width and warms it up.
    """

    # Which of the fields `method`, `pooling`, `max_tokens` and `options` this kind reads. If another one of them is
    # set, the encoder does not start: no setting is without effect.
    uses: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec

    @abstractmethod
    def identity(self) -> EncoderIdentity:
        """Return everything that decides the features of an item. See `identity.identity_of`."""

    @abstractmethod
    def load(self, decoded: "Decoded") -> ItemT:
        """Prepare one decoded item for a pass. Raises ValueError, whose message the user gets.

        Called in another thread than `features`: items are loaded while others are encoded.
        """

    @abstractmethod
    def features(self, items: Sequence[ItemT]) -> Float32Array:
        """Return features (B × F) of loaded items; at least one, at most `max_batch`.

        A row must not depend on the others: items of several requests share a pass.
        """

    def read(self, raw: "Raw") -> ItemT:
        """Decode and load one raw item. Raises ValueError, whose message the user gets."""
        # Imported here: replicas of the endpoint import this file, and decode nothing.
        from workers.encoders.decoding import decode
        from workers.encoders.media import Limits

        return self.load(decode(self.spec.takes, raw, Limits.from_spec(self.spec)))

    def probe_items(self) -> "list[Decoded]":
        """The items of its fingerprint. Override it where the generated ones do not suit, such as for
        lists of numbers of another length than 2.
        """
        from workers.encoders.media import generated_items

        return generated_items(self.spec)


def as_features(
    spec: EncoderSpec, rows_VF: npt.NDArray[np.floating], windows: Sequence[int] | None = None
) -> Float32Array:
    """Features (B × F) from a model's output: the mean over each item's windows, scaled if declared.

    `windows`: how many consecutive rows each item has; one by default.
    """
    rows: npt.NDArray[np.floating] = np.asarray(rows_VF, dtype=np.float32)
    if windows is not None and any(count != 1 for count in windows):
        ends = np.cumsum(windows)
        rows = np.stack(
            [rows[end - count : end].mean(axis=0) for end, count in zip(ends, windows, strict=True)]
        )
    if spec.normalize:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths == 0, 1, lengths)
    return np.ascontiguousarray(rows, dtype=np.float32)


# Class and packages of each built-in kind. Imported on use: some take seconds, and only the process of the
# encoder needs them.
_BUILT_IN = {
    "synthetic": ("workers.encoders.synthetic:SyntheticEncoder", ()),
    "sentence-transformers": (
        "workers.encoders.sentence_transformers:SentenceTransformersEncoder",
        ("sentence_transformers",),
    ),
    "transformers": ("workers.encoders.transformers:TransformersEncoder", ("transformers",)),
    "open-clip": ("workers.encoders.open_clip:OpenClipEncoder", ("open_clip",)),
}
# Modules that decoding and resampling import; then the names of packages that differ from their module.
_DECODERS = {"audio": ("soundfile", "soxr", "av"), "video": ("av",)}
_PACKAGES = {"sentence_transformers": "sentence-transformers", "open_clip": "open_clip_torch"}
_NOT_IN_EVERY_KIND = ("method", "pooling", "max_tokens", "options")


def load_encoder(spec: EncoderSpec) -> FrozenEncoder[Any]:
    """Load the encoder of this declaration, warmed up. Raises EncoderUnusable."""
    _check_declaration(spec)
    builder = _builder(spec)
    _check_settings(spec, builder)
    encoder = builder(spec)
    _check_width(encoder)
    return encoder


def known_kinds() -> tuple[str, ...]:
    """The names of all kinds on this node: built in, and from installed packages."""
    return (*_BUILT_IN, *sorted(_installed()))


def environment(spec: EncoderSpec) -> dict[str, str]:
    """Variables for the process of the encoder, which libraries read when they are imported."""
    offline = {} if spec.download else {"HF_HUB_OFFLINE": "1"}
    return {**offline, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def _check_declaration(spec: EncoderSpec) -> None:
    for module in _DECODERS.get(spec.takes, ()):
        _check_installed(spec, module, f"takes {spec.takes}")
    if spec.windows > 1 and spec.window_seconds is None:
        raise EncoderUnusable(
            f"encoder {spec.name!r} has {spec.windows} windows: set window_seconds to their length"
        )


def _builder(spec: EncoderSpec) -> type[FrozenEncoder[Any]]:
    """The class of the kind."""
    if spec.kind in _BUILT_IN:
        path, modules = _BUILT_IN[spec.kind]
        for module in modules:
            _check_installed(spec, module, f"is of kind {spec.kind}")
    elif ":" in spec.kind:
        path = spec.kind
    elif entry_point := _installed().get(spec.kind):
        path = entry_point.value
    else:
        raise EncoderUnusable(
            f"encoder {spec.name!r} has kind {spec.kind!r}, which this node does not have; it has "
            f"{', '.join(known_kinds())}. Other kinds come from installed packages (entry points of "
            f"{ENCODER_ENTRY_POINTS}) or are written as module:Class"
        )
    return _import(spec, path)


def _import(spec: EncoderSpec, path: str) -> type[FrozenEncoder[Any]]:
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, OSError) as error:  # OSError: a library that it wraps
        raise EncoderUnusable(
            f"encoder {spec.name!r} of kind {spec.kind!r} cannot be imported from {path}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, FrozenEncoder)):
        raise EncoderUnusable(
            f"encoder {spec.name!r} has kind {spec.kind!r}: {path} is no subclass of "
            "workers.encoders.port.FrozenEncoder"
        )
    return found


def _installed() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=ENCODER_ENTRY_POINTS)}


def _check_settings(spec: EncoderSpec, builder: type[FrozenEncoder[Any]]) -> None:
    for field in _NOT_IN_EVERY_KIND:
        if getattr(spec, field) and field not in builder.uses:
            raise EncoderUnusable(
                f"encoder {spec.name!r} sets {field}, which kind {spec.kind!r} does not have"
            )


def _check_width(encoder: FrozenEncoder[Any]) -> None:
    """One item through the encoder, which also warms it up."""
    spec = encoder.spec
    try:
        rows_BF = encoder.features([encoder.load(encoder.probe_items()[0])])
    except ValueError as error:
        raise EncoderUnusable(f"encoder {spec.name!r} does not encode a probe: {error}") from error
    if rows_BF.shape != (1, spec.width):
        title = spec.title if spec.model else f"kind {spec.kind}"
        raise EncoderUnusable(
            f"encoder {spec.name!r} has width {spec.width}, but the features of {title} have "
            f"{rows_BF.shape[-1]}"
        )
    if not np.isfinite(rows_BF).all():
        raise EncoderUnusable(f"encoder {spec.name!r} computes features that are not finite")


def _check_installed(spec: EncoderSpec, module: str, why: str) -> None:
    if find_spec(module) is None:
        package = _PACKAGES.get(module, module)
        raise EncoderUnusable(
            f"encoder {spec.name!r} {why}, and {package} is not installed on this node. The worker "
            f"image has it, and so has a checkout after `make setup`; in an environment of your own: "
            f"pip install {package}"
        )
