"""Rows that no decoder can read, or that crash it: each has a verdict, and the others are read."""

import io
import wave
from pathlib import Path

from tests.fakes.raw_files import DEPTH, TEXT, jsonl, side
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
        "withhold 10",
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
        "10": "the decoder sent no results: an item was not sent",
    }


def test_a_row_that_takes_too_long_is_left_out(dataset: NewDataset) -> None:
    data = dataset(DEPTH, TEXT)
    rows = [{"id": text, "depth": [1, 2, 3], "text": text} for text in ("a", "sleep", "b")]
    data.add("rows.jsonl", jsonl(rows))
    read = data.read(decoder=DECODER, row_seconds=0.5)
    assert read.ids == ["a", "b"]
    assert read.reasons == {"sleep": "the decoder took more than 0.5 s"}


def wav(seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16_000 * seconds))
    return file.getvalue()


def test_sound_within_the_limits_of_its_declaration_is_read(dataset: NewDataset) -> None:
    """What each decoder refuses is said in tests/unit/encoders."""
    data = dataset(side("sound", "audio", max_seconds=1), TEXT)
    files = {"good": wav(1), "none": b"RIFF", "long": wav(2), "cut off": wav(1)[:-100]}
    for name, content in files.items():
        data.file(name, content)
    data.add("r.jsonl", jsonl([{"id": n, "sound_file_name": n, "text": "a"} for n in files]))
    read = data.read()
    assert read.ids == ["good"]
    assert read.rows[0].items[0].samples_WN.shape == (1, 8000)  # type: ignore[union-attr]
    assert "no audio that can be read" in read.reasons["none"]
    assert "has 2 seconds; permitted are 1" in read.reasons["long"]
    assert "the WAV header announces 16000 bytes" in read.reasons["cut off"]
