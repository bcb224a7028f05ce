"""Models of transformers, with an explicit method and pooling.

No code from a model's folder runs (`trust_remote_code` is off), and weights that the folder lacks are refused:
transformers would draw them at random.

Shapes: B items, F width of the raw feature, V rows of a pass: one for each window of each item, L positions,
D width of a hidden state.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from workers.encoders.identity import Setting, find_model, identity_of
from workers.encoders.media import Audio, Decoded, Video
from workers.encoders.port import EncoderUnusable, Float32Array, FrozenEncoder, as_features
from workers.encoders.torch_model import (
    check_windows,
    in_passes,
    prepare_torch,
    sampling_rate,
    token_limit,
    windows_at,
)

# A text, or what a processor makes of one window: tensors with a first dimension of 1.
Row = str | Mapping[str, Tensor]

_PACKAGES = ("transformers", "tokenizers", "torch", "torchvision")
_PROCESSORS = {
    "text": "AutoTokenizer",
    "image": "AutoImageProcessor",
    "audio": "AutoFeatureExtractor",
    "video": "AutoVideoProcessor",
}


class TransformersEncoder(FrozenEncoder[list[Row]]):
    """A model with a processor for what it takes."""

    uses: ClassVar[frozenset[str]] = frozenset({"method", "pooling", "max_tokens"})

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        if spec.takes not in _PROCESSORS:
            raise EncoderUnusable(
                f"encoder {spec.name!r} is declared for {spec.takes}; kind transformers takes "
                f"{', '.join(_PROCESSORS)}"
            )
        self._dtype = prepare_torch(spec)
        self._files = find_model(spec)
        self._model = self._load_model()
        self._method = self._find_method()
        self._parameters = set(inspect.signature(_called(self._method)).parameters)
        self._processor = self._from_folder(_PROCESSORS[spec.takes])
        limit = getattr(self._processor, "model_max_length", None)
        self._most_tokens = token_limit(spec, limit, self._model.config)
        self._rate, self._most_samples = 0, None
        if spec.takes == "audio":
            self._rate = sampling_rate(spec, self._processor)
            self._most_samples = check_windows(spec, self._processor)

    def identity(self) -> EncoderIdentity:
        """Return the identity. It has the class of the processor, because libraries resize images differently."""
        settings: dict[str, Setting] = {
            "method": self.spec.method,
            "pooling": self._pooling,
            "processor": type(self._processor).__name__,
        }
        if self.spec.takes == "text":
            settings["max_tokens"] = self._most_tokens
        if self.spec.takes == "audio":
            settings["sampling_rate"] = self._rate
        return identity_of(
            self.spec, adapter=1, files=self._files, settings=settings, packages=_PACKAGES
        )

    def load(self, decoded: Decoded) -> list[Row]:
        """Return the windows of an item. Each passes the processor alone, so no window depends on another."""
        if isinstance(decoded, str):
            return [decoded]
        if isinstance(decoded, Image.Image):
            return [self._process(images=decoded)]
        if isinstance(decoded, Audio):
            windows = windows_at(decoded, self._rate, self._most_samples)
            return [self._process_sound(samples_N) for samples_N in windows]
        if isinstance(decoded, Video):
            return [self._process_frames(frames) for frames in decoded.frames_WTYXC]
        raise ValueError(f"{self.spec.title} takes no lists of numbers")

    def features(self, items: Sequence[list[Row]]) -> Float32Array:
        """Features (B × F)."""
        rows = [row for item in items for row in item]
        by_shape = defaultdict(list)
        for index, row in enumerate(rows):
            by_shape[_shape(row)].append(index)
        vectors: dict[int, Float32Array] = {}
        for alike in by_shape.values():
            for part in in_passes(alike, self.spec.max_batch):
                rows_VF = self._forward([rows[index] for index in part])
                vectors.update(zip(part, rows_VF, strict=True))
        rows_VF = np.stack([vectors[index] for index in range(len(rows))])
        return as_features(self.spec, rows_VF, [len(item) for item in items])

    @property
    def _pooling(self) -> str:
        return self.spec.pooling or "pooler"

    def _forward(self, rows_V: Sequence[Row]) -> Float32Array:
        inputs = self._tokens(rows_V) if isinstance(rows_V[0], str) else _joined(rows_V)
        placed = {
            name: tensor.to(
                self.spec.placed_on, self._dtype if tensor.is_floating_point() else None
            )
            for name, tensor in inputs.items()
        }
        with torch.inference_mode():
            output = self._method(
                **{name: each for name, each in placed.items() if name in self._parameters}
            )
            rows_VF = self._pool(output, placed.get("attention_mask"))
        if rows_VF.ndim != 2:
            raise EncoderUnusable(
                f"encoder {self.spec.name!r}: the output of {self.spec.model} has shape "
                f"{tuple(rows_VF.shape)}, not one vector for each item: set pooling to mean or cls"
            )
        return rows_VF.float().cpu().numpy()

    def _pool(self, output: Any, mask_VL: Tensor | None) -> Tensor:
        """Return one vector for each row, from the output of the method."""
        if self._pooling in ("mean", "cls"):
            hidden = output if isinstance(output, Tensor) else output.get("last_hidden_state")
            if hidden is None or hidden.ndim < 3:
                raise self._no_output("last_hidden_state", "pooler or none")
            return hidden[:, 0] if self._pooling == "cls" else _mean(hidden, mask_VL)
        if isinstance(output, Tensor):
            return output
        if self._pooling == "none":
            first: Tensor = output[0]
            return first
        pooled: Tensor | None = output.get("pooler_output")
        if pooled is None:
            raise self._no_output("pooler_output", "mean or cls")
        return pooled.flatten(1)

    def _no_output(self, name: str, others: str) -> EncoderUnusable:
        return EncoderUnusable(
            f"encoder {self.spec.name!r} has pooling {self._pooling}, and the output of "
            f"{self.spec.method or 'the forward pass'} of {self.spec.model} has no {name}: set "
            f"pooling to {others}, or another method"
        )

    def _load_model(self) -> Any:
        model, report = self._from_folder("AutoModel", dtype=self._dtype, output_loading_info=True)
        missing = sorted(report["missing_keys"])
        if self._pooling != "pooler":
            missing = [key for key in missing if not key.startswith("pooler.")]
        if missing:
            raise EncoderUnusable(
                f"encoder {self.spec.name!r}: the weights of {self.spec.model} lack {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}"
            )
        return model.to(self.spec.placed_on).eval()

    def _from_folder(self, auto_class: str, **options: object) -> Any:
        try:
            return getattr(transformers, auto_class).from_pretrained(
                str(self._files.folder), local_files_only=True, trust_remote_code=False, **options
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise EncoderUnusable(
                f"encoder {self.spec.name!r}: {auto_class} cannot load {self.spec.model}: {error}"
            ) from error

    def _find_method(self) -> Callable[..., Any]:
        """Return the declared method, or part of the model, such as `encoder`; by default the model."""
        if self.spec.method is None:
            forward: Callable[..., Any] = self._model
            return forward
        found = getattr(self._model, self.spec.method, None)
        if self.spec.method.startswith("_") or not callable(found):
            ours = [name for name in dir(type(self._model)) if name.endswith("_features")]
            parts = [name for name, _ in self._model.named_children()]
            raise EncoderUnusable(
                f"encoder {self.spec.name!r}: {type(self._model).__name__} has no method "
                f"{self.spec.method!r}; it has {', '.join([*ours, *parts])}"
            )
        method: Callable[..., Any] = found
        return method

    def _tokens(self, texts: Sequence[Row]) -> Mapping[str, Tensor]:
        # SigLIP was trained with texts of full length, and has no mask.
        fixed = self._model.config.model_type.startswith("siglip")
        tokens: Mapping[str, Tensor] = self._processor(
            list(texts),
            padding="max_length" if fixed else True,
            truncation=self._most_tokens is not None,
            max_length=self._most_tokens,
            return_tensors="pt",
        )
        return tokens

    def _process(self, **inputs: object) -> Mapping[str, Tensor]:
        processed = self._processor(**inputs, return_tensors="pt")
        return {name: value for name, value in processed.items() if isinstance(value, Tensor)}

    def _process_sound(self, samples_N: Float32Array) -> Mapping[str, Tensor]:
        # Whisper's windows are all padded to 30 s: the mean is over those positions that have sound.
        mask = {"return_attention_mask": True} if hasattr(self._processor, "n_samples") else {}
        return self._process(raw_speech=samples_N, sampling_rate=self._rate, **mask)

    def _process_frames(self, frames_TYXC: np.ndarray[Any, Any]) -> Mapping[str, Tensor]:
        return self._process(videos=[list(frames_TYXC)], do_sample_frames=False)


def _called(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable whose signature counts: `forward` of a module."""
    return method.forward if isinstance(method, torch.nn.Module) else method


def _shape(row: Row) -> object:
    """Concatenate rows of equal shape. Texts are padded, with a mask."""
    if isinstance(row, str):
        return None
    return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(row.items()))


def _joined(rows_V: Sequence[Any]) -> Mapping[str, Tensor]:
    return {name: torch.cat([row[name] for row in rows_V]) for name in rows_V[0]}


def _mean(hidden: Tensor, mask_VL: Tensor | None) -> Tensor:
    """Return the mean over positions (V × L × D) that the mask leaves, or over pixels (V × D × Y × X)."""
    if hidden.ndim > 3:
        return hidden.flatten(2).mean(-1)
    positions = hidden.shape[1]
    if mask_VL is None or mask_VL.shape[1] % positions:
        return hidden.mean(1)
    # A model that shortens its input, as Whisper does, has one position for several of the mask.
    weights_VL1 = mask_VL[:, :: mask_VL.shape[1] // positions, None].to(hidden.dtype)
    return (hidden * weights_VL1).sum(1) / weights_VL1.sum(1).clamp(min=1)
