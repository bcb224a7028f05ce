"""Functions of kinds that run on torch: device, number format, and lists of windows.

Shapes: V rows of a pass: one for each window of each item.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch

from cmcl.contract.encoder import EncoderSpec
from cmcl.memory import keep_freed_memory
from workers.encoders.media import Audio
from workers.encoders.port import EncoderUnusable, Float32Array
from workers.encoders.recordings import resample

RowT = TypeVar("RowT")
# Above this a tokenizer's limit means that it has none.
_NO_LIMIT = 1 << 24


def prepare_torch(spec: EncoderSpec) -> torch.dtype:
    """Set the number of threads and how memory is kept, check the device, and return the format of weights.

    Raises EncoderUnusable.
    """
    torch.set_num_threads(max(1, int(spec.num_cpus)))
    keep_freed_memory()
    if spec.placed_on.startswith("cuda") and not torch.cuda.is_available():
        raise EncoderUnusable(
            f"encoder {spec.name!r} is placed on {spec.placed_on}, and this node has no GPU that torch "
            "can use"
        )
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def in_passes(rows: Sequence[RowT], most: int) -> list[Sequence[RowT]]:
    """Divide rows into passes of at most this many, because one item may have many windows."""
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def windows_at(audio: Audio, rate: int, most: int | None) -> list[Float32Array]:
    """Return the windows of a recording at the rate of a model, cut to the given number of samples."""
    # Rounding in resampling can make a window one sample longer.
    return [resample(samples_N, audio.rate, rate)[:most] for samples_N in audio.samples_WN]


def check_windows(spec: EncoderSpec, extractor: object) -> int | None:
    """Return the most samples that the feature extractor takes, if it is bounded. Raises EncoderUnusable.

    Of longer recordings CLAP's would draw a random excerpt, and Whisper's would drop the end.
    """
    rate = sampling_rate(spec, extractor)
    most: int | None = getattr(extractor, "nb_max_samples", getattr(extractor, "n_samples", None))
    if most is not None and (spec.window_seconds is None or spec.window_seconds * rate > most):
        raise EncoderUnusable(
            f"encoder {spec.name!r}: {spec.model} takes at most {most / rate:g} seconds of audio: set "
            "window_seconds to at most that, and windows to how many of them are averaged"
        )
    return most


def sampling_rate(spec: EncoderSpec, extractor: object) -> int:
    """Return the rate that a feature extractor takes. Raises EncoderUnusable."""
    rate = getattr(extractor, "sampling_rate", None)
    if not isinstance(rate, int):
        raise EncoderUnusable(f"encoder {spec.name!r}: {spec.model} has no sampling rate for audio")
    return rate


def token_limit(spec: EncoderSpec, tokenizer_limit: int | None, config: object) -> int | None:
    """The tokens to which texts are truncated: as declared, or as the tokenizer and the model's positions
    permit; None where there is no limit.
    """
    if spec.takes != "text":
        return None
    # In models with several towers, such as CLIP, only the text tower's configuration has it.
    configs = (config, getattr(config, "text_config", None))
    positions = [getattr(each, "max_position_embeddings", None) for each in configs]
    limits = [each for each in (spec.max_tokens, tokenizer_limit, *positions) if each and each > 0]
    limit = int(min(limits, default=_NO_LIMIT))
    return limit if limit < _NO_LIMIT else None
