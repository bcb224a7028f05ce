"""The published protocol: steps, tests, settings of each encoder, and what is known to differ here.

Facts from the paper (arXiv 2503.14963) and its code (Xiaohao-Liu/CMCL, commit 145fda6, MIT).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmcl.contract.modality import ModalityPair
from workers.methods.method import Recipe

Preset = Literal["product", "paper"]
Test = Literal["accuracy", "recall"]
Origin = Literal["encoded", "imported", "synthetic"]
"""Of features: encoded here, imported from the authors' caches, or drawn at random."""

EPOCHS, BATCH_SIZE, GRADIENT_NORM, WEIGHT_DECAY = 5, 64, 1.0, 1e-3
_DEVIATIONS = Path(__file__).with_name("deviations.json")
# Recall: draws of at most this many test rows.
DRAWS, ROWS_OF_A_DRAW = 5, 1000


@dataclass(frozen=True)
class Step:
    """One modality pair of one source. `tests`: what is measured on its test rows."""

    source: str
    first: str
    second: str
    tests: tuple[Test, ...]

    @property
    def name(self) -> str:
        """Name in matrices, such as `vggsound text-audio`."""
        return f"{self.source} {self.first}-{self.second}"

    @property
    def pair(self) -> ModalityPair:
        """The pair; the published loss and Acc go from its first to its second modality."""
        return ModalityPair(first=self.first, second=self.second)


STEPS = (
    Step("ucf101", "text", "video", ("accuracy",)),
    Step("esc50", "text", "audio", ("accuracy", "recall")),
    Step("nyudv2", "vision", "depth", ("recall",)),
    Step("clotho", "text", "audio", ("recall",)),
    Step("vggsound", "text", "audio", ("accuracy", "recall")),
    Step("vggsound", "text", "video", ("accuracy", "recall")),
    Step("vggsound", "audio", "video", ("recall",)),
    Step("tvl", "vision", "tactile", ("recall",)),
    Step("tvl", "text", "tactile", ("recall",)),
    Step("tvl", "vision", "text", ("recall",)),
    Step("llvip", "vision", "thermal", ("recall",)),
)
# What an item of each modality is for a decoder.
MEDIA: Mapping[str, str] = {
    "text": "text",
    "vision": "image",
    "audio": "audio",
    "video": "video",
    "depth": "image",
    "thermal": "image",
    "tactile": "image",
}
# Of the modalities in a row of the published caches.
PUBLISHED_ORDER = (
    "vision",
    "text",
    "audio",
    "thermal",
    "depth",
    "imu",
    "video",
    "tactile",
    "point",
)


@dataclass(frozen=True)
class Family:
    """An encoder of the paper: width, published rate, and its thresholds in the text and in the code."""

    name: str
    width: int
    learning_rate: float
    text_threshold: float
    code_threshold: float = 0.1
    licence: str = ""
    licence_id: str = "CC-BY-NC-SA-4.0"


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "imagebind",
            1024,
            1e-4,
            0.01,
            licence="CC BY-NC-SA 4.0 (code and weights): non-commercial use only",
        ),
        Family(
            "languagebind",
            768,
            1e-3,
            0.0001,
            licence="MIT (code and weights)",
            licence_id="MIT",
        ),
        Family(
            "unibind",
            1024,
            1e-4,
            0.01,
            licence="MIT (code); its backbone is ImageBind's, CC BY-NC-SA 4.0: non-commercial use only",
        ),
    )
}


def training_settings(preset: Preset, family: Family, batch_size: int | None) -> dict[str, Any]:
    """Fields of TrainingSpec; a batch size that is given replaces that of the preset."""
    given = {} if batch_size is None else {"batch_size": batch_size}
    if preset == "product":
        return given
    return {
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "learning_rate": family.learning_rate,
        "temperature": 1.0,
        **given,
    }


def recipe(preset: Preset) -> Recipe:
    """What the specification does not say: the published loop has products of raw embeddings, and the last iterate."""
    if preset == "product":
        return Recipe()
    return Recipe(weight_decay=WEIGHT_DECAY, averaged_share=0.0, unit_length=False)


def deviations(preset: Preset, origin: Origin) -> list[str]:
    """Known differences of a run to what was published (deviations.json)."""
    known: dict[str, list[str]] = json.loads(_DEVIATIONS.read_text())
    return [*known[origin], *known[preset], *known["all"]]
