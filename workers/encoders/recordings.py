"""Decode recordings, which are not trusted: audio, and the frames of evenly spaced windows of videos.

The first bytes decide the container, and which parser sees the file. Channels of audio are mixed to mono by their mean.
WAV, FLAC, OGG and MP3 are decoded by libsndfile, M4A and videos by FFmpeg, which gets only those bytes: no playlist, no
other file and no address can be opened. Packages are imported where needed: a node may lack those for media that no
encoder of it takes.

Of a video, a first pass reads the times of all frames without decoding them; the second one
decodes from the key frame before each wanted frame. The rotation that a phone records is applied.

Shapes: W windows, N samples of a window, C channels, T frames of a window, Y × X pixels of a frame.
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workers.encoders.media import Audio, DecoderMissing, Limits, Video, window_starts
from workers.encoders.parts import Part

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_AUDIO_FORMATS = ("WAV", "FLAC", "OGG", "MP3", "M4A")
_MOST_CHANNELS = 16
_RATES = (1_000, 384_000)
# Decoded samples of one recording before windows are cut: 512 MiB.
_MOST_SAMPLES = 1 << 27
_BLOCK = 1 << 16
# libsndfile's number of samples where a FLAC header has none.
_UNKNOWN = 1 << 62
_MOST_CHUNKS = 1000
_VIDEO_FORMATS = ("MP4", "MOV", "WebM", "MKV")
_MOST_STREAMS = 16
_MOST_FRAMES = 1 << 20
# Pixels of all kept frames of one video: 384 MiB.
_MOST_PIXELS = 1 << 27
_ROW_ALIGNMENT = 64
# The boxes that an MP4 or MOV file begins with.
_MP4 = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")

Float32Array = npt.NDArray[np.float32]


def read_audio(data: bytes, limits: Limits) -> Audio:
    """Return the windows of a recording. Raises ValueError with a sentence for the user."""
    parts = [*audio_parts(data, limits)]
    if len(parts) == 1:
        return parts[0].of
    return Audio(np.concatenate([part.of.samples_WN for part in parts]), parts[0].of.rate)


def audio_parts(data: bytes, limits: Limits) -> Iterator[Part[Audio]]:
    """Yield each window of a recording. Raises ValueError with a sentence for the user."""
    samples_N, rate = _samples(data, limits)
    length = len(samples_N)
    window = length
    if limits.window_seconds is not None:
        window = max(1, min(length, round(limits.window_seconds * rate)))
    for start in map(int, window_starts(length, window, limits.windows)):
        samples_WN = samples_N[None, start : start + window]
        yield Part(Audio(samples_WN, rate), start / rate, (start + window) / rate)


def _samples(data: bytes, limits: Limits) -> tuple[Float32Array, int]:
    """Return all samples of a recording, and how many a second has."""
    if data[4:8] == b"ftyp":
        return _read_m4a(data, limits)
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        _check_wav(data)
    elif not (data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or _is_mpeg(data)):
        raise ValueError(f"no audio that can be read: permitted are {', '.join(_AUDIO_FORMATS)}")
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


def _check_rate(channels: int, rate: int) -> None:
    """Check rate and channels of a header. Raises ValueError."""
    if not 1 <= channels <= _MOST_CHANNELS:
        raise ValueError(f"the audio has {channels} channels; permitted are 1 to {_MOST_CHANNELS}")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(
            f"the audio has {rate} samples per second; permitted are {_RATES[0]} to {_RATES[1]}"
        )


def _check_seconds(what: str, seconds: float, limits: Limits) -> None:
    """Check the length of a recording. Raises ValueError."""
    if seconds > limits.seconds:
        raise ValueError(f"the {what} has {seconds:.0f} seconds; permitted are {limits.seconds:g}")


def _read_sound_file(data: bytes, limits: Limits) -> tuple[Float32Array, int]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: without the library that it wraps
        raise DecoderMissing(_missing("soundfile", "decodes audio")) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_rate(file.channels, file.samplerate)
            known = file.frames < _UNKNOWN
            if known:
                _check_seconds("audio", file.frames / file.samplerate, limits)
            samples_N = _collect(_sound_blocks(file), file.samplerate, limits)
            if known and file.format == "FLAC" and len(samples_N) < file.frames:
                raise ValueError(
                    f"the audio is cut off: {len(samples_N)} of {file.frames} samples can be decoded"
                )
            return samples_N, file.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless formats
        raise ValueError(f"the audio is damaged: {error}") from error


def _sound_blocks(file: Any) -> Iterator[Float32Array]:
    while len(block_NC := file.read(_BLOCK, dtype="float32", always_2d=True)):
        yield block_NC.mean(axis=1, dtype=np.float32)


def _read_m4a(data: bytes, limits: Limits) -> tuple[Float32Array, int]:
    try:
        import av
    except ImportError as error:
        raise DecoderMissing(_missing("av", "decodes M4A")) from error
    try:
        with _open_container(data, "mp4") as container:
            if not container.streams.audio:
                raise ValueError("the file has no audio stream")
            stream = container.streams.audio[0]
            context = stream.codec_context
            if context is None:
                raise ValueError("the codec of the audio is unknown")
            context.thread_count = 1
            rate = context.sample_rate
            _check_rate(context.channels, rate)
            if stream.duration is not None and stream.time_base is not None:
                _check_seconds("audio", float(stream.duration * stream.time_base), limits)
            planar = av.AudioResampler(format="fltp")
            blocks = (
                part.to_ndarray().mean(axis=0, dtype=np.float32)
                for frame in container.decode(stream)
                for part in planar.resample(frame)
            )
            return _collect(blocks, rate, limits), rate
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


def read_video(data: bytes, limits: Limits) -> Video:
    """Return the frames of the windows of a video. Raises ValueError with a sentence for the user."""
    return _read_video(data, limits)[0]


def video_parts(data: bytes, limits: Limits) -> Iterator[Part[Video]]:
    """Yield each window of a video. Raises ValueError with a sentence for the user."""
    video, starts_W, window = _read_video(data, limits)
    for at, start in enumerate(starts_W):
        one = slice(at, at + 1)
        item = Video(video.frames_WTYXC[one], video.seconds_WT[one])
        yield Part(item, start, start + window)


def _read_video(data: bytes, limits: Limits) -> tuple[Video, list[float], float]:
    """Return all windows, where each starts, and how long they are, in seconds."""
    container = _container_of(data)
    try:
        import av
    except ImportError as error:
        raise DecoderMissing(_missing("av", "decodes video")) from error
    try:
        times, keys, tick = _frame_times(data, container, limits)
        starts_W, window = _windows(times, tick, limits)
        wanted_WT = _wanted(times, starts_W, window, limits.frames)
        frames_WTYXC = _decode(data, container, wanted_WT, keys, limits)
    except (av.error.FFmpegError, OverflowError) as error:
        raise ValueError(f"the video is damaged: {error}") from error
    seconds_WT = ((wanted_WT - times[0]) * tick).astype(np.float64)
    return Video(frames_WTYXC, seconds_WT), [start * tick for start in starts_W], window * tick


def _open_container(data: bytes, container: str) -> "InputContainer":
    """Open a file in memory as this container, and no other. Raises ValueError for too many streams."""
    import av

    # With a protocol that does not exist, a reference to another file cannot be opened.
    options = {"protocol_whitelist": "none", "max_streams": str(_MOST_STREAMS)}
    opened = av.open(io.BytesIO(data), "r", format=container, options=options)
    if len(opened.streams) > _MOST_STREAMS:
        opened.close()
        raise ValueError(f"the file has more than {_MOST_STREAMS} streams")
    return opened


def _container_of(data: bytes) -> str:
    if data[4:8] in _MP4:
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    raise ValueError(f"no video that can be read: permitted are {', '.join(_VIDEO_FORMATS)}")


def _video_stream(container: "InputContainer", limits: Limits) -> "VideoStream":
    if not container.streams.video:
        raise ValueError("the file has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise ValueError("the codec of the video is unknown")
    _check_pixels(context.width, context.height, limits)
    context.thread_count = 1
    # Frames can be larger than the header says. FFmpeg counts rows as wide as it stores them.
    context.options = {"max_pixels": str(limits.pixels + _ROW_ALIGNMENT * context.height)}
    return stream


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if not 1 <= width * height <= limits.pixels:
        raise ValueError(
            f"the video has {width} x {height} pixels; permitted are 1 to {limits.pixels} in all"
        )


def _frame_times(data: bytes, container: str, limits: Limits) -> tuple[list[int], list[int], float]:
    """Return the times of all frames and of key frames, ascending in ticks, and the seconds of a tick."""
    times, keys = [], []
    with _open_container(data, container) as opened:
        stream = _video_stream(opened, limits)
        tick = float(stream.time_base or 0)
        if stream.duration is not None:
            _check_seconds("video", stream.duration * tick, limits)
        for packet in opened.demux(stream):
            if packet.pts is None or packet.is_discard:
                continue
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if len(times) > _MOST_FRAMES:
                raise ValueError(f"the video has more than {_MOST_FRAMES} frames")
    if not times or tick <= 0:
        raise ValueError("the video has no frames")
    times.sort()
    _check_seconds("video", (times[-1] - times[0]) * tick, limits)
    return times, sorted(keys), tick


def _windows(times: list[int], tick: float, limits: Limits) -> tuple[list[float], float]:
    """Return where each window starts, and how long they are, in ticks."""
    last = (times[-1] - times[0]) / max(1, len(times) - 1)  # the last frame is shown as the others
    length = times[-1] - times[0] + last
    window = length if limits.window_seconds is None else limits.window_seconds / tick
    window = min(length, window)
    return window_starts(length, window, limits.windows), window


def _wanted(
    times: list[int], starts_W: list[float], window: float, frames: int
) -> npt.NDArray[np.int64]:
    """Return the times of the frames to decode (W × T): those shown in the middle of equal parts of a window."""
    middles = (np.arange(frames) + 0.5) * window / frames
    shown = [
        bisect_right(times, times[0] + target) - 1
        for target in (np.array(starts_W)[:, None] + middles).flatten().tolist()
    ]
    return np.array([times[max(0, index)] for index in shown]).reshape(len(starts_W), frames)


def _decode(
    data: bytes,
    container: str,
    wanted_WT: npt.NDArray[np.int64],
    keys: list[int],
    limits: Limits,
) -> npt.NDArray[np.uint8]:
    frames: npt.NDArray[np.uint8] | None = None
    with _open_container(data, container) as opened:
        stream = _video_stream(opened, limits)
        for time, frame in _frames_at(opened, stream, np.unique(wanted_WT).tolist(), keys):
            _check_pixels(frame.width, frame.height, limits)
            picture = _picture(frame)
            if frames is None:
                _check_kept(wanted_WT.size, picture)
                frames = np.empty((*wanted_WT.shape, *picture.shape), np.uint8)
            if picture.shape != frames.shape[2:]:
                raise ValueError("the frames of the video differ in size")
            frames[wanted_WT == time] = picture
    if frames is None:
        raise ValueError("the video has no frames")
    return frames


def _check_kept(count: int, picture: npt.NDArray[np.uint8]) -> None:
    height, width, _ = picture.shape
    if count * height * width > _MOST_PIXELS:
        raise ValueError(
            f"{count} frames of {width} x {height} pixels are too many; permitted are {_MOST_PIXELS} "
            "pixels in all: send a smaller video"
        )


def _frames_at(
    opened: "InputContainer", stream: "VideoStream", wanted: list[int], keys: list[int]
) -> Iterator[tuple[int, Any]]:
    """Yield the frame of each time; times ascend."""
    decoded = opened.decode(stream)
    position = -(1 << 62)
    for time in wanted:
        key = keys[max(0, bisect_right(keys, time) - 1)] if keys else time
        if position < key <= time:
            opened.seek(key, stream=stream)
            decoded = opened.decode(stream)
        frame = next((each for each in decoded if each.pts is not None and each.pts >= time), None)
        if frame is None:
            raise ValueError("the video is damaged: some of its frames cannot be decoded")
        position = time
        yield time, frame


def _picture(frame: Any) -> npt.NDArray[np.uint8]:
    picture: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, frame.rotation // 90)
