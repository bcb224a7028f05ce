"""Rows that no decoder can read, or that crash it: each has a verdict, and the others are read."""

import io
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from tests.fakes.raw_files import DEPTH, IMAGE, TEXT, jsonl, picture, side
from tests.unit.prepare.conftest import NewDataset

DECODER = "tests.fakes.child_tasks:decode_or_crash"


def test_a_row_that_ends_the_decoder_is_left_out_and_the_others_are_read(
    dataset: NewDataset, tmp_path: Path
) -> None:
    data = dataset(DEPTH, TEXT)
    texts = [
        "a",
        "segfault",
        "b",
        "exit",
        "allocate",
        "refuse",
        "bug",
        f"once {tmp_path}/mark",
        "c",
        "lie",
    ]
    rows = [{"id": f"{at}", "depth": [1, 2, at], "text": text} for at, text in enumerate(texts)]
    data.add("rows.jsonl", jsonl(rows))
    read = data.read(decoder=DECODER)
    assert [row.items[1] for row in read.rows] == ["a", "b", texts[7], "c"]
    assert read.reasons == {
        "1": "the decoder ended with SIGSEGV",
        "3": "the decoder ended with status 7",
        "4": "the decoder took more than 768 MiB of memory",
        "5": "the text is refused",
        "6": "it cannot be decoded: KeyError: 'deep in a library'",
        "9": "the decoder ended before its last row",
    }


def test_a_row_that_takes_too_long_is_left_out(dataset: NewDataset) -> None:
    data = dataset(DEPTH, TEXT)
    rows = [{"id": text, "depth": [1, 2, 3], "text": text} for text in ("a", "sleep", "b")]
    data.add("rows.jsonl", jsonl(rows))
    read = data.read(decoder=DECODER, row_seconds=1)
    assert read.ids == ["a", "b"]
    assert read.reasons == {"sleep": "the decoder took more than 1 s"}


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def vast_png() -> bytes:
    """60,000 x 60,000 pixels, by its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + picture()[33:]


def animation(frames: int) -> bytes:
    """A GIF of one pixel."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + image * frames + b";"


def wav(announced: int | None = None) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    data = bytearray(file.getvalue())
    if announced is not None:
        data[40:44] = struct.pack("<I", announced)
    return bytes(data)


def silence(hours: int) -> bytes:
    """A small FLAC: a thousand samples per second."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 1000, 1, format="FLAC") as out:
        for _ in range(60 * hours):
            out.write(np.zeros(60_000, np.int16))
    return file.getvalue()


def mp4(codec: str, side: int = 32) -> bytes:
    """An MP4 with a single stream: two black frames, or a tenth of a second of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=10 if codec == "libx264" else 16_000)
        frames: list[Any]
        if codec == "libx264":
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            black = np.zeros((side, side, 3), np.uint8)
            frames = [av.VideoFrame.from_ndarray(black, format="rgb24") for _ in range(2)]
        else:
            stream.layout = "mono"
            none = np.zeros((1, 1600), np.float32)
            frames = [av.AudioFrame.from_ndarray(none, format="fltp", layout="mono")]
            frames[0].sample_rate = 16_000
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))
    return file.getvalue()


def test_damaged_and_hostile_pictures_have_a_verdict(dataset: NewDataset) -> None:
    data = dataset(IMAGE, TEXT)
    files = {
        "good": picture(),
        "still": animation(1),
        "truncated": jpeg()[:-500],
        "vast": vast_png(),
        "long": animation(10_000),
        "vector": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, content in files.items():
        data.file(name, content)
    data.add("r.jsonl", jsonl([{"id": n, "image_file_name": n, "text": "a"} for n in files]))
    read = data.read()
    assert read.ids == ["good", "still"]
    assert "damaged" in read.reasons["truncated"]
    assert "vast" in read.reasons
    assert "more than 1000 frames" in read.reasons["long"]
    assert "no image that can be read" in read.reasons["vector"]


def test_damaged_sound_has_a_verdict(dataset: NewDataset) -> None:
    data = dataset(side("sound", "audio", max_seconds=1), TEXT)
    files = {"good": wav(), "wrong": wav(1 << 30), "none": b"RIFF", "silence": silence(hours=12)}
    files["long"] = wav()[:40] + struct.pack("<I", 32_000) + bytes(32_000)
    for name, content in files.items():
        data.file(name, content)
    data.add("r.jsonl", jsonl([{"id": n, "sound_file_name": n, "text": "a"} for n in files]))
    read = data.read()
    assert read.ids == ["good"]
    assert read.rows[0].items[0].samples_WN.shape == (1, 4000)  # type: ignore[union-attr]
    assert "the WAV header announces 1073741824 bytes" in read.reasons["wrong"]
    assert "no audio that can be read" in read.reasons["none"]
    assert "has 2 seconds; permitted are 1" in read.reasons["long"]
    assert "has 43200 seconds; permitted are 1" in read.reasons["silence"]


def test_damaged_video_has_a_verdict(dataset: NewDataset) -> None:
    data = dataset(side("film", "video", max_pixels=32 * 32), TEXT)
    files = {
        "good": mp4("libx264"),
        "sound": mp4("aac"),
        "large": mp4("libx264", 64),
        "none": b"RIFF",
    }
    files["cut off"] = files["good"][:300]
    for name, content in files.items():
        data.file(name, content)
    data.add("r.jsonl", jsonl([{"id": n, "film_file_name": n, "text": "a"} for n in files]))
    read = data.read()
    assert read.ids == ["good"]
    assert "no video stream" in read.reasons["sound"]
    assert "has 64 x 64 pixels; permitted are 1 to 1024" in read.reasons["large"]
    assert "no video that can be read" in read.reasons["none"]
    assert "the video is damaged" in read.reasons["cut off"]
