"""Decode audio files, which are not trusted.

Channels are mixed to mono by their mean. WAV, FLAC, OGG and MP3 are decoded by libsndfile, M4A by FFmpeg. The
first bytes decide which, so that no other parser sees the file.

Shapes: W windows, N samples of a window, C channels.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.encoders.media import Audio, DecoderMissing, Limits, window_starts

FORMATS = ("WAV", "FLAC", "OGG", "MP3", "M4A")
_MOST_CHANNELS = 16
_RATES = (1_000, 384_000)
# Decoded samples of one recording before windows are cut: 512 MiB.
_MOST_SAMPLES = 1 << 27
_BLOCK = 1 << 16
# libsndfile's number of samples where a FLAC header has none.
_UNKNOWN = 1 << 62
_MOST_CHUNKS = 1000

Float32Array = npt.NDArray[np.float32]


def read_audio(data: bytes, limits: Limits) -> Audio:
    """Return the windows of a recording. Raises ValueError with a sentence for the user."""
    if data[4:8] == b"ftyp":
        return _read_m4a(data, limits)
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        _check_wav(data)
    elif not (data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or _is_mpeg(data)):
        raise ValueError(f"no audio that can be read: permitted are {', '.join(FORMATS)}")
    return _read_sound_file(data, limits)


def resample(samples_N: Float32Array, rate: int, wanted: int) -> Float32Array:
    """Resample. Raises DecoderMissing without the package soxr."""
    if rate == wanted:
        return samples_N
    try:
        import soxr
    except ImportError as error:
        raise DecoderMissing(_missing("soxr", "resamples audio")) from error
    resampled: Float32Array = soxr.resample(samples_N, rate, wanted, quality="HQ")
    return resampled


def check_rate(channels: int, rate: int) -> None:
    """Check rate and channels of a header. Raises ValueError."""
    if not 1 <= channels <= _MOST_CHANNELS:
        raise ValueError(f"the audio has {channels} channels; permitted are 1 to {_MOST_CHANNELS}")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(
            f"the audio has {rate} samples per second; permitted are {_RATES[0]} to {_RATES[1]}"
        )


def check_seconds(what: str, seconds: float, limits: Limits) -> None:
    """Check the length of a recording. Raises ValueError."""
    if seconds > limits.seconds:
        raise ValueError(f"the {what} has {seconds:.0f} seconds; permitted are {limits.seconds:g}")


def _read_sound_file(data: bytes, limits: Limits) -> Audio:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without the library that it wraps
        raise DecoderMissing(_missing("soundfile", "decodes audio")) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            check_rate(file.channels, file.samplerate)
            known = file.frames < _UNKNOWN
            if known:
                check_seconds("audio", file.frames / file.samplerate, limits)
            samples_N = _collect(_sound_blocks(file), file.samplerate, limits)
            if known and file.format == "FLAC" and len(samples_N) < file.frames:
                raise ValueError(
                    f"the audio is cut off: {len(samples_N)} of {file.frames} samples can be decoded"
                )
            return _cut(samples_N, file.samplerate, limits)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless formats
        raise ValueError(f"the audio is damaged: {error}") from error


def _sound_blocks(file: Any) -> Iterator[Float32Array]:
    while len(block_NC := file.read(_BLOCK, dtype="float32", always_2d=True)):
        yield block_NC.mean(axis=1, dtype=np.float32)


def _read_m4a(data: bytes, limits: Limits) -> Audio:
    try:
        import av
    except ImportError as error:
        raise DecoderMissing(_missing("av", "decodes M4A")) from error
    from workers.encoders.video import open_container

    try:
        with open_container(data, "mp4") as container:
            if not container.streams.audio:
                raise ValueError("the file has no audio stream")
            stream = container.streams.audio[0]
            context = stream.codec_context
            if context is None:
                raise ValueError("the codec of the audio is unknown")
            context.thread_count = 1
            rate = context.sample_rate
            check_rate(context.channels, rate)
            if stream.duration is not None and stream.time_base is not None:
                check_seconds("audio", float(stream.duration * stream.time_base), limits)
            planar = av.AudioResampler(format="fltp")
            blocks = (
                part.to_ndarray().mean(axis=0, dtype=np.float32)
                for frame in container.decode(stream)
                for part in planar.resample(frame)
            )
            return _cut(_collect(blocks, rate, limits), rate, limits)
    except av.error.FFmpegError as error:
        raise ValueError(f"the audio is damaged: {error.strerror}") from error


def _collect(blocks: Iterator[Float32Array], rate: int, limits: Limits) -> Float32Array:
    """Return all samples, counted again, because the length in a header can be wrong."""
    collected = bytearray()
    most = min(_MOST_SAMPLES, int(limits.seconds * rate))
    for block_N in blocks:
        collected += block_N.tobytes()
        if len(collected) > 4 * most:
            raise ValueError(
                f"the audio has more than {most} samples at {rate} per second; permitted are "
                f"{limits.seconds:g} seconds and {_MOST_SAMPLES} samples"
            )
    samples_N = np.frombuffer(collected, np.float32)
    if not len(samples_N):
        raise ValueError("the audio has no samples")
    if not np.isfinite(samples_N).all():
        raise ValueError("the audio has samples that are not finite")
    return samples_N


def _cut(samples_N: Float32Array, rate: int, limits: Limits) -> Audio:
    length = len(samples_N)
    if limits.window_seconds is None:
        return Audio(samples_N[None], rate)
    window = max(1, min(length, round(limits.window_seconds * rate)))
    starts = [int(start) for start in window_starts(length, window, limits.windows)]
    return Audio(np.stack([samples_N[start : start + window] for start in starts]), rate)


def _check_wav(data: bytes) -> None:
    """Check what libsndfile corrects silently: sizes beyond the file, and sizes that contradict each other."""
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        present = len(data) - at - 8
        if name == b"fmt " and present >= 16:
            _check_wav_format(data[at + 8 : at + 24])
        if name == b"data":
            # A program that writes to a pipe does not know the size and writes one of these.
            if size not in (0, 0xFFFFFFFF) and size > present:
                raise ValueError(
                    f"the audio is cut off, or its header is wrong: the WAV header announces {size} "
                    f"bytes of samples, and {present} follow"
                )
            return
        at += 8 + size + size % 2


def _check_wav_format(chunk: bytes) -> None:
    code, channels, _, _, block, bits = struct.unpack("<HHIIHH", chunk)
    if code in (1, 3) and block != channels * -(-bits // 8):  # samples as integers, or floats
        raise ValueError(
            f"the WAV header is wrong: {channels} channels of {bits} bits are not {block} bytes"
        )


def _is_mpeg(data: bytes) -> bool:
    """Return whether the file begins with the header of an MPEG audio frame of layer 3."""
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2


def _missing(package: str, does: str) -> str:
    return (
        f"the package {package}, which {does}, is not installed on this node. The worker image has "
        f"it, and so has a checkout after `make setup`; elsewhere: pip install {package}"
    )
