"""Files of requests are decoded in a child process: what kills the decoder is an error of its item alone."""

import io
import os
import re
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmcl.contract.encoder import EncoderSpec
from workers.encoders.media import packed
from workers.encoders.synthetic import SyntheticEncoder
from workers.sandbox.child_process import FrameWriter
from workers.serve.encoders.decoding import DecodeFile, FileReader, decode_file
from workers.serve.encoders.port import MOST_THUMBNAIL_BYTES, Wanted

IMAGES = EncoderSpec(
    name="pictures", kind="synthetic", takes="image", width=8, max_pixels=10_000, answer_seconds=60
)


def picture(size: tuple[int, int] = (30, 20)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(file, "PNG")
    return file.getvalue()


def crashing_decoder(request: DecodeFile, output: FrameWriter) -> None:
    """Like `decode_file`, but some files crash it, exceed its time, or make it send other messages."""
    content = (output.folder / "item").read_bytes()
    if content == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if content == b"hang":
        time.sleep(600)
    if content == b"lie":
        output.send({"kind": "image", "size": [4000, 4000], "bytes": 5}, [b"short"])
        return
    if content == b"large thumbnail":
        header, body = packed(Image.new("RGB", (2, 2)))
        output.send(header, [*body, bytes(1 << 20)])
        return
    if content == b"environment":
        output.send({"reason": " ".join(os.environ)})
        return
    decode_file(request, output)


@pytest.fixture(scope="module")
def reader() -> Iterator[FileReader[bytes]]:
    reader = FileReader(SyntheticEncoder(IMAGES), crashing_decoder)
    yield reader
    reader.close()


def test_a_file_is_the_item_that_decoding_it_here_gives(reader: FileReader[bytes]) -> None:
    assert reader(picture()) == SyntheticEncoder(IMAGES).read(picture())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a text", "permitted are JPEG, PNG"),
        (picture()[:60], "damaged"),
        (picture((200, 100)), "200 x 100 pixels"),
        (b"crash", "the decoder ended with SIGSEGV"),
        (b"lie", "image data"),
    ],
)
def test_an_unreadable_file_is_an_error_of_its_item_alone(
    reader: FileReader[bytes], data: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        reader(data)
    assert reader(picture()) == SyntheticEncoder(IMAGES).read(picture())


def test_the_decoder_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "CMCL_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "secret")
    reader = FileReader(SyntheticEncoder(IMAGES), crashing_decoder)
    try:
        with pytest.raises(ValueError, match="PATH") as answer:
            reader(b"environment")
        assert not re.search("AWS_|CMCL_|RAY_", str(answer.value))
    finally:
        reader.close()


def test_a_decoder_that_hangs_is_ended_before_the_endpoint_stops_waiting() -> None:
    spec = IMAGES.model_copy(update={"answer_seconds": 2})
    reader = FileReader(SyntheticEncoder(spec), crashing_decoder)
    try:
        began = time.monotonic()
        with pytest.raises(ValueError, match="took more than"):
            reader(b"hang")
        assert time.monotonic() - began < 60
    finally:
        reader.close()


def test_a_thumbnail_is_made_where_the_file_is_decoded_and_a_wrong_one_is_an_error(
    reader: FileReader[bytes],
) -> None:
    wanted = Wanted(parts=False, thumbnails=True)
    (part,) = reader.parts(picture((120, 60)), wanted)
    assert part.of == SyntheticEncoder(IMAGES).read(picture((120, 60)))
    assert Image.open(io.BytesIO(part.thumbnail)).size == (96, 48)
    assert len(part.thumbnail) < 4096
    with pytest.raises(ValueError, match="thumbnail that is too large"):
        reader.parts(b"large thumbnail", wanted)


def test_an_unreadable_file_does_not_end_the_process_that_found_it_unreadable(
    reader: FileReader[bytes],
) -> None:
    reader(picture())
    before = reader._child.pid
    with pytest.raises(ValueError, match="damaged"):
        reader(picture()[:60])
    reader(picture())
    assert reader._child.pid == before


def test_each_window_of_a_recording_is_an_item_that_covers_its_seconds() -> None:
    """A window is read as a recording of its own would be, so its feature is comparable to those that were learned."""
    spec = EncoderSpec(
        name="speech", kind="synthetic", takes="audio", width=8, window_seconds=2, answer_seconds=60
    )
    samples = np.random.default_rng(1).uniform(-1, 1, 5 * 8000).astype(np.float32)
    encoder = SyntheticEncoder(spec)
    reader = FileReader(encoder)
    try:
        parts = reader.parts(wav(samples), Wanted(parts=True, thumbnails=True))
        assert [(part.start, part.end) for part in parts] == [(0, 2), (1.5, 3.5), (3, 5)]
        for part in parts:
            window = samples[int(8000 * (part.start or 0)) : int(8000 * (part.end or 0))]
            assert part.of == encoder.read(wav(window))
            heard, rate = soundfile.read(io.BytesIO(part.thumbnail))
            assert len(heard) / rate == pytest.approx(2, abs=0.2)
            assert len(part.thumbnail) < MOST_THUMBNAIL_BYTES
        with pytest.raises(ValueError, match="no audio that can be read"):
            reader.parts(b"a text", Wanted(parts=True, thumbnails=False))
    finally:
        reader.close()


def wav(samples_N: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples_N, 8000, "FLOAT", format="WAV")
    return file.getvalue()
