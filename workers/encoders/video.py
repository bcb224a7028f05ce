"""Decode videos, which are not trusted: the frames of evenly spaced windows.

The first bytes decide the container, and FFmpeg gets only those bytes: no playlist, no other file and no
address can be opened. A first pass reads the times of all frames without decoding them; the second one
decodes from the key frame before each wanted frame. The rotation that a phone records is applied.

Shapes: W windows, T frames of a window, Y × X pixels of a frame.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workers.encoders.audio import check_seconds
from workers.encoders.media import DecoderMissing, Limits, Video, window_starts

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = ("MP4", "MOV", "WebM", "MKV")
_MOST_STREAMS = 16
_MOST_FRAMES = 1 << 20
# Pixels of all kept frames of one video: 384 MiB.
_MOST_PIXELS = 1 << 27
_ROW_ALIGNMENT = 64
# The boxes that an MP4 or MOV file begins with.
_MP4 = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def read_video(data: bytes, limits: Limits) -> Video:
    """Return the frames of the windows of a video. Raises ValueError with a sentence for the user."""
    container = _container_of(data)
    try:
        import av
    except ImportError as error:
        raise DecoderMissing(
            "the package av, which decodes video, is not installed on this node. The worker image has "
            "it, and so has a checkout after `make setup`; elsewhere: pip install av"
        ) from error
    try:
        times, keys, tick = _frame_times(data, container, limits)
        wanted_WT = _wanted(times, tick, limits)
        frames_WTYXC = _decode(data, container, wanted_WT, keys, limits)
    except (av.error.FFmpegError, OverflowError) as error:
        raise ValueError(f"the video is damaged: {error}") from error
    seconds_WT = ((wanted_WT - times[0]) * tick).astype(np.float64)
    return Video(frames_WTYXC, seconds_WT)


def open_container(data: bytes, container: str) -> "InputContainer":
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
    raise ValueError(f"no video that can be read: permitted are {', '.join(FORMATS)}")


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
    with open_container(data, container) as opened:
        stream = _video_stream(opened, limits)
        tick = float(stream.time_base or 0)
        if stream.duration is not None:
            check_seconds("video", stream.duration * tick, limits)
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
    check_seconds("video", (times[-1] - times[0]) * tick, limits)
    return times, sorted(keys), tick


def _wanted(times: list[int], tick: float, limits: Limits) -> npt.NDArray[np.int64]:
    """Return the times of the frames to decode (W × T): those shown in the middle of equal parts of a window."""
    last = (times[-1] - times[0]) / max(1, len(times) - 1)  # the last frame is shown as the others
    length = times[-1] - times[0] + last
    window = length if limits.window_seconds is None else limits.window_seconds / tick
    window = min(length, window)
    middles = (np.arange(limits.frames) + 0.5) * window / limits.frames
    starts = np.array(window_starts(length, window, limits.windows))
    shown = [
        bisect_right(times, times[0] + target) - 1
        for target in (starts[:, None] + middles).flatten().tolist()
    ]
    return np.array([times[max(0, index)] for index in shown]).reshape(len(starts), limits.frames)


def _decode(
    data: bytes,
    container: str,
    wanted_WT: npt.NDArray[np.int64],
    keys: list[int],
    limits: Limits,
) -> npt.NDArray[np.uint8]:
    frames: npt.NDArray[np.uint8] | None = None
    with open_container(data, container) as opened:
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
