"""Small folders with the layouts of all sources: real media files, made from random latents.

Items of a row show the same latent (colours, tones, words), so that modalities can be aligned.
"""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from benchmarks.paper.sources.source import Split

_LATENT = 6
_SIDE = 32
_RATE = 8_000
_SECONDS = 0.5
_FRAMES = 4
_WORDS = (
    ("dark", "bright"),
    ("small", "large"),
    ("soft", "hard"),
    ("near", "far"),
    ("slow", "fast"),
    ("old", "new"),
)
_CLASSES = ("ApplyTape", "BlowHorn", "ChopWood", "DryHair")
_MIX = np.random.RandomState(7).standard_normal((_LATENT, 8 * 8 * 3))


@dataclass(frozen=True)
class Counts:
    """Rows of each split of each source. ESC-50 has a fifth of its rows in test."""

    train: int = 16
    test: int = 16

    def of(self, split: Split) -> int:
        """Rows of a split."""
        return self.train if split == "train" else self.test


def write_tiny(root: Path, counts: Counts = Counts()) -> Path:
    """Write all sources below `root`, unless they are there."""
    for number, (name, write) in enumerate(_WRITERS.items()):
        folder = root / name
        if not folder.exists():
            unfinished = root / f".{name}"
            unfinished.mkdir(parents=True)
            write(unfinished, counts, np.random.RandomState(number))
            unfinished.rename(folder)
    return root


def _latent(draws: np.random.RandomState, kind: int | None = None) -> np.ndarray:
    """A latent, near that of its class if it has one."""
    latent: np.ndarray = draws.standard_normal(_LATENT)
    if kind is None:
        return latent
    centre = np.random.RandomState(100 + kind).standard_normal(_LATENT)
    return np.asarray(1.5 * centre + 0.5 * latent)


def _pixels(latent: np.ndarray) -> np.ndarray:
    small = 128 + 30 * (latent @ _MIX).reshape(8, 8, 3)
    picture = Image.fromarray(small.clip(0, 255).astype(np.uint8))
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def _save_picture(path: Path, latent: np.ndarray, draws: np.random.RandomState) -> None:
    noise = draws.randint(-8, 9, (_SIDE, _SIDE, 3))
    pixels = (_pixels(latent).astype(int) + noise).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _sound(latent: np.ndarray) -> np.ndarray:
    time = np.arange(int(_RATE * _SECONDS)) / _RATE
    tones = [
        np.exp(0.7 * value) * np.sin(2 * np.pi * (200 + 400 * place) * time)
        for place, value in enumerate(latent)
    ]
    mixed: np.ndarray = np.sum(tones, axis=0)
    return np.asarray(0.5 * mixed / np.abs(mixed).max(), np.float32)


def _wav(latent: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _sound(latent), _RATE, format="WAV")
    return file.getvalue()


def _save_video(path: Path, latent: np.ndarray, codec: str, *, with_sound: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as out:
        pictures = out.add_stream(codec, rate=8)
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height, pictures.pix_fmt = _SIDE, _SIDE, "yuv420p"
        sounds = out.add_stream("aac", rate=_RATE) if with_sound else None
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(_pixels(latent)), format="rgb24")
        for number in range(_FRAMES):
            frame.pts = number
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        if sounds is not None:
            assert isinstance(sounds, av.AudioStream)
            samples = av.AudioFrame.from_ndarray(_sound(latent)[None], format="fltp", layout="mono")
            samples.sample_rate = _RATE
            out.mux(sounds.encode(samples))
            out.mux(sounds.encode(None))


def _caption(latent: np.ndarray) -> str:
    return " ".join(pair[int(value > 0)] for pair, value in zip(_WORDS, latent, strict=True))


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _ucf101(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    parts = {"train": counts.train, "test": counts.test - counts.test // 2, "val": counts.test // 2}
    for part, count in parts.items():
        for number in range(count):
            kind = number % len(_CLASSES)
            name = f"v_{_CLASSES[kind]}_{part}_g{number:02d}.avi"
            path = folder / "UCF101" / part / _CLASSES[kind] / name
            _save_video(path, _latent(draws, kind), "mpeg4", with_sound=False)


def _esc50(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    rows = []
    # The last fifth of all rows is tested.
    for number in range(5 * counts.test):
        kind = number % len(_CLASSES)
        sound = {"bytes": _wav(_latent(draws, kind)), "path": None}
        name = f"{number % 5 + 1}-{1000 + number}-A-{kind}.wav"
        rows.append({"filename": name, "category": _CLASSES[kind].lower(), "audio": sound})
    (folder / "data").mkdir()
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        path = folder / "data" / f"train-0000{number}-of-00002-tiny.parquet"
        pq.write_table(pa.Table.from_pylist(part), path)


def _nyudv2(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    parts: dict[str, Split] = {"train": "train", "val": "test"}
    for part, split in parts.items():
        for number in range(counts.of(split)):
            scene = ("kitchen_0001", "office_0002")[number % 2]
            frame, latent = folder / "raw_data" / part / scene / str(number), _latent(draws)
            _save_picture(frame / "rgb.png", latent, draws)
            frame.joinpath("depth.png").write_bytes(_grey(latent))


def _grey(latent: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels(-latent)).convert("L").save(file, "PNG")
    return file.getvalue()


def _clotho(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    parts: dict[str, Split] = {"development": "train", "evaluation": "test"}
    for part, split in parts.items():
        table = [["file_name", *(f"caption_{number}" for number in range(1, 6))]]
        (folder / part).mkdir()
        for number in range(counts.of(split)):
            latent, name = _latent(draws), f"sound {number}.wav"
            (folder / part / name).write_bytes(_wav(latent))
            table.append([name, *[f"{_caption(latent)}, again"] * 5])
        _write_csv(folder / f"clotho_captions_{part}.csv", table)


def _vggsound(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    videos = folder / "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"
    table = []
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        for number in range(counts.of(split)):
            kind, youtube = number % len(_CLASSES), f"{split}-{number:06d}"
            table.append([youtube, str(number), f"{_CLASSES[kind].lower()}, outside", split])
            path = videos / f"{youtube}_{number:06d}.mp4"
            _save_video(path, _latent(draws, kind), "libx264", with_sound=True)
    # Rows whose video was never downloaded are passed over.
    table.append(["gone", "7", "applytape, outside", "train"])
    _write_csv(folder / "vggsound.csv", table)


def _tvl(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    parts = ("ssvtp", "hct/data1", "hct/data2", "hct/data3")
    splits: tuple[Split, ...] = ("train", "test")
    for part in parts:
        place = folder / "tvl_dataset" / part
        for split in splits:
            without = part == "ssvtp" and split == "test"
            table = [["url", "caption"] if without else ["url", "tactile", "caption"]]
            for number in range(max(1, counts.of(split) // len(parts))):
                latent = _latent(draws)
                seen, felt = (
                    f"images_rgb/{split}_{number}_rgb.jpg",
                    f"images_tac/{split}_{number}_tac.jpg",
                )
                _save_picture(place / seen, latent, draws)
                _save_picture(place / felt, latent[::-1], draws)
                caption = f"{_caption(latent)}.\r\n"
                table.append([seen, caption] if without else [seen, felt, caption])
            _write_csv(place / f"{split}.csv", table)


def _llvip(folder: Path, counts: Counts, draws: np.random.RandomState) -> None:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        for number in range(counts.of(split)):
            latent, name = _latent(draws), f"{number:06d}.jpg"
            _save_picture(folder / "LLVIP" / "visible" / split / name, latent, draws)
            _save_picture(folder / "LLVIP" / "infrared" / split / name, -latent, draws)


_WRITERS: Mapping[str, Callable[[Path, Counts, np.random.RandomState], None]] = {
    "ucf101": _ucf101,
    "esc50": _esc50,
    "nyu-d-2": _nyudv2,
    "clotho": _clotho,
    "vggsound": _vggsound,
    "tvl": _tvl,
    "llvip": _llvip,
}
