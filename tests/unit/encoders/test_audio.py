"""Bytes of users are decoded to sound, or rejected with a reason."""

import contextlib
import io
import random
import struct

import av
import numpy as np
import pytest
import soundfile

from tests.unit.encoders.conftest import Bounded
from workers.encoders.media import Limits
from workers.encoders.recordings import read_audio, resample

LIMITS = Limits(bytes=1 << 24, pixels=0, seconds=20)
RATE = 8000


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    parts = [0.5 * np.sin(2 * np.pi * 440 * time) * (channel == 0) for channel in range(channels)]
    return np.stack(parts, axis=1).astype(np.float32)


def sound(kind: str, samples: np.ndarray, rate: int = RATE, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def m4a(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.T.copy(), format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def wav_header(**fields: int) -> bytes:
    """A WAV file of one second with fields of its header replaced."""
    wav = {"channels": 1, "rate": RATE, "block": 2, "bits": 16, "data": 2 * RATE, **fields}
    head = struct.pack(
        "<HHIIHH", 1, wav["channels"], wav["rate"], wav["rate"] * wav["block"] & 0xFFFFFFFF,
        wav["block"], wav["bits"],
    )  # fmt: skip
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", wav["data"])
    body += bytes(2 * RATE)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_common_formats_are_read_as_mono(kind: str) -> None:
    audio = read_audio(sound(kind, tone(2, 16_000, channels=2), 16_000), LIMITS)
    assert audio.rate == 16_000
    assert audio.samples_WN.dtype == np.float32
    assert audio.samples_WN.shape[0] == 1
    # MP3 adds some samples before and behind.
    assert abs(audio.samples_WN.shape[1] - 32_000) < 3000
    # The mean of a tone and silence.
    assert abs(np.abs(audio.samples_WN).max() - 0.25) < 0.05


def test_m4a_is_read() -> None:
    audio = read_audio(m4a(tone(2, 16_000), 16_000), LIMITS)
    assert audio.rate == 16_000
    assert abs(audio.samples_WN.shape[1] - 32_000) < 3000
    assert abs(np.abs(audio.samples_WN[0, 8000:16_000]).max() - 0.5) < 0.1


def test_windows_are_cut_and_shorter_items_stay_whole() -> None:
    samples = np.arange(10 * RATE, dtype=np.float32)[:, None] / (10 * RATE)
    limits = Limits(bytes=1 << 24, pixels=0, seconds=20, window_seconds=2, windows=3)
    windows = read_audio(sound("WAV", samples, subtype="FLOAT"), limits).samples_WN
    assert windows.shape == (3, 2 * RATE)
    assert windows[:, 0].tolist() == pytest.approx([0, 0.4, 0.8])
    short = read_audio(sound("WAV", samples[:RATE], subtype="FLOAT"), limits).samples_WN
    assert short.shape == (1, RATE)


def test_resampling_keeps_a_tone() -> None:
    at_16k = resample(tone(1, 48_000)[:, 0], 48_000, 16_000)
    assert len(at_16k) == 16_000
    np.testing.assert_allclose(at_16k[1000:-1000], tone(1, 16_000)[1000:-1000, 0], atol=0.01)


def test_twelve_hours_of_silence_are_refused_at_small_cost(bounded: Bounded) -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 1000, 1, format="FLAC") as out:
        for _ in range(720):
            out.write(np.zeros(60_000, np.int16))
    with bounded(1, 20), pytest.raises(ValueError, match="has 43200 seconds; permitted are 600"):
        read_audio(file.getvalue(), Limits(bytes=1 << 30, pixels=0, seconds=600))


def test_a_length_that_the_header_hides_is_counted(bounded: Bounded) -> None:
    data = bytearray(sound("FLAC", np.zeros((RATE * 3600, 1), np.float32)))
    data[21] &= 0xF0  # the 36 bits of the number of samples
    data[22:26] = bytes(4)
    limits = Limits(bytes=1 << 24, pixels=0, seconds=60)
    with bounded(1, 20), pytest.raises(ValueError, match="more than 480000 samples"):
        read_audio(bytes(data), limits)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rate": 0}, "damaged|0 samples per second"),
        ({"rate": 4_000_000_000}, "samples per second; permitted are 1000 to 384000|damaged"),
        ({"channels": 0, "block": 0}, "damaged|0 channels"),
        ({"channels": 64, "block": 128}, "has 64 channels; permitted are 1 to 16"),
        ({"channels": 2}, "2 channels of 16 bits are not 2 bytes"),
        ({"bits": 13, "block": 1}, "1 channels of 13 bits are not 1 bytes"),
        ({"data": 4 * RATE}, "announces 32000 bytes of samples, and 16000 follow"),
    ],
)
def test_a_wav_with_a_wrong_header_is_refused_at_small_cost(
    fields: dict[str, int], reason: str, bounded: Bounded
) -> None:
    with bounded(1, 20), pytest.raises(ValueError, match=reason):
        read_audio(wav_header(**fields), LIMITS)


def test_a_wav_from_a_pipe_is_read() -> None:
    assert read_audio(wav_header(data=0xFFFFFFFF), LIMITS).samples_WN.shape == (1, RATE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no audio that can be read: permitted are WAV, FLAC, OGG, MP3, M4A"),
        (b"a text", "no audio"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.mp3", "no audio"),
        (b"FORM\x00\x00\x00\x00AIFF", "no audio"),
        (b"RIFF\x00\x00\x00\x00WAVE", "damaged"),
        (b"OggS" + bytes(100), "damaged"),
        (b"\x00\x00\x00\x18ftypM4A " + bytes(100), "damaged"),
        (sound("WAV", np.zeros((0, 1), np.float32)), "has no samples"),
        (
            sound("WAV", np.full((10, 1), np.nan, np.float32), subtype="FLOAT"),
            "samples that are not finite",
        ),
        (sound("FLAC", tone(10))[:-2000], "cut off|damaged"),
    ],
)
def test_what_is_no_audio_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_audio(data, LIMITS)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "M4A"])
def test_every_unreadable_recording_is_a_value_error(kind: str) -> None:
    draws = random.Random(0)
    whole = m4a(tone(0.5, 16_000), 16_000) if kind == "M4A" else sound(kind, tone(0.5))
    for _ in range(100):
        data = bytearray(whole[: draws.randrange(len(whole) // 2, len(whole) + 1)])
        for _ in range(draws.randrange(8)):
            data[draws.randrange(len(data))] = draws.randrange(256)
        with contextlib.suppress(ValueError):
            assert read_audio(bytes(data), LIMITS).samples_WN.shape[0] == 1
