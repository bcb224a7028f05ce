"""Bytes of users are decoded to frames, or rejected with a reason."""

import contextlib
import io
import random
import struct
from dataclasses import replace

import av
import numpy as np
import pytest

from tests.unit.encoders.conftest import Bounded
from tests.unit.encoders.test_audio import m4a, tone
from workers.encoders.media import Limits
from workers.encoders.recordings import read_video, video_parts

LIMITS = Limits(bytes=1 << 24, pixels=10_000, seconds=20, frames=4)
FPS = 10


def video(container: str, codec: str, frames: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """Grey frames, each a little lighter than the one before."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=FPS, options={"g": "12"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            grey = np.full((size[1], size[0], 3), 20 + 5 * (index % 40), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


def shown(data: bytes, limits: Limits) -> list[list[int]]:
    """The index of each frame of each window, by its grey."""
    frames = read_video(data, limits).frames_WTYXC
    return np.rint((frames.mean((2, 3, 4)) - 20) / 5).astype(int).tolist()


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("webm", "libvpx-vp9"), ("matroska", "libx264")],
)
def test_frames_lie_in_the_middle_of_equal_parts(container: str, codec: str) -> None:
    data = video(container, codec, 40)
    assert shown(data, LIMITS) == [[5, 15, 25, 35]]
    seconds = read_video(data, LIMITS).seconds_WT
    np.testing.assert_allclose(seconds, [[0.5, 1.5, 2.5, 3.5]], atol=0.01)


def test_the_rotation_of_a_phone_is_applied() -> None:
    data = bytearray(video("mp4", "libx264", 4))
    matrix = data.index(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = turned
    assert read_video(bytes(data), LIMITS).frames_WTYXC.shape == (1, 4, 64, 48, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no video that can be read: permitted are MP4, MOV, WebM, MKV"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "no video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(100), "the video is damaged"),
        (b"\x1aE\xdf\xa3" + bytes(100), "the video is damaged"),
        (m4a(tone(1, 16_000), 16_000), "no video stream"),
        (video("mp4", "libx264", 4, (128, 96)), "has 128 x 96 pixels; permitted are 1 to 10000"),
    ],
)
def test_what_is_no_video_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_video(data, LIMITS)


def test_a_long_video_is_refused_at_small_cost(bounded: Bounded) -> None:
    data = video("mp4", "libx264", 300)
    limits = Limits(bytes=1 << 24, pixels=10_000, seconds=5)
    with bounded(1, 30), pytest.raises(ValueError, match="has 30 seconds; permitted are 5"):
        read_video(data, limits)


def test_only_the_parts_that_are_kept_are_decoded(bounded: Bounded) -> None:
    data = video("mp4", "libx264", 200, (640, 480))
    limits = Limits(
        bytes=1 << 24, pixels=1_000_000, seconds=100, window_seconds=1, windows=1, frames=2
    )
    # 200 such frames are 184 MB.
    with bounded(2, 100):
        assert read_video(data, limits).frames_WTYXC.shape == (1, 2, 480, 640, 3)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx")])
def test_every_unreadable_video_is_a_value_error(container: str, codec: str) -> None:
    draws = random.Random(0)
    whole = video(container, codec, 12)
    for _ in range(100):
        data = bytearray(whole[: draws.randrange(len(whole) // 2, len(whole) + 1)])
        for _ in range(draws.randrange(8)):
            data[draws.randrange(len(data))] = draws.randrange(256)
        with contextlib.suppress(ValueError):
            assert read_video(bytes(data), LIMITS).frames_WTYXC.ndim == 5


def test_windows_that_cover_a_video_are_those_that_are_read_alone() -> None:
    data = video("mp4", "libx264", 50)
    limits = Limits(bytes=1 << 24, pixels=10_000, seconds=20, window_seconds=2, frames=2)
    parts = [*video_parts(data, replace(limits, windows=None))]
    spans = np.array([[part.start, part.end] for part in parts], float)
    np.testing.assert_allclose(spans, [[0.0, 2.0], [1.5, 3.5], [3.0, 5.0]], atol=0.01)
    assert [part.of.frames_WTYXC.shape for part in parts] == [(1, 2, 48, 64, 3)] * 3
    together = read_video(data, replace(limits, windows=3))
    apart = np.concatenate([part.of.frames_WTYXC for part in parts])
    np.testing.assert_array_equal(apart, together.frames_WTYXC)
    np.testing.assert_array_equal(
        np.concatenate([part.of.seconds_WT for part in parts]), together.seconds_WT
    )
