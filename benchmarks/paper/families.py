"""The encoders of a run: for each modality a declaration, real or a stand-in.

Names: `imagebind`, `languagebind`, `unibind`, and the same with `fake-` before them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.protocol import FAMILIES, MEDIA, Family
from cmcl.contract.encoder import EncoderSpec

_FAKE = "fake-"
_FAKE_KIND = "benchmarks.paper.fake:FakeEncoder"
# ImageBind's features leave the model with these lengths: all but vision's are scaled by a constant. UniBind
# has its architecture. LanguageBind scales all but texts by exp of a learned number that begins at 2.66.
_SCALED = {"text": 100.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0}
_LENGTHS: Mapping[str, Mapping[str, float]] = {
    "imagebind": _SCALED,
    "unibind": _SCALED,
    "languagebind": dict.fromkeys([name for name in MEDIA if name != "text"], 14.3),
}
# Windows that the encoders' own code cuts, fixed: nothing is drawn at random.
_WINDOWS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "imagebind": {
        "audio": {"window_seconds": 2.0, "windows": 3},
        "video": {"window_seconds": 2.0, "windows": 5, "frames": 2},
    },
    # Of audio its own code takes the whole recording, and cuts three parts of it.
    "languagebind": {"video": {"frames": 8}},
}
_LARGEST_ITEM = 64 << 20
# Class of each real encoder, in the optional package.
_PACKAGE = Path(__file__).parents[2] / "examples" / "binding"
_KINDS = {
    "imagebind": "cmcl_binding_encoders.imagebind:ImageBind",
    "unibind": "cmcl_binding_encoders.imagebind:UniBind",
    "languagebind": "cmcl_binding_encoders.languagebind:LanguageBind",
}


@dataclass(frozen=True)
class Given:
    """What the user says of a real encoder: file or folder of its weights, whether its licence is accepted, device."""

    weights: Path | None = None
    accepted: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class ChosenEncoder:
    """An encoder by its name on the command line. `width`: of the features, reduced for tiny runs."""

    name: str
    width: int

    @property
    def family(self) -> Family:
        """The encoder of the paper that it is or replaces."""
        return FAMILIES[self.name.rpartition("-")[2]]

    @property
    def is_fake(self) -> bool:
        """Whether it is a stand-in."""
        return self.name.startswith(_FAKE)

    def specs(self, given: "Given") -> dict[str, EncoderSpec]:
        """Declarations by modality."""
        if not self.is_fake and str(_PACKAGE) not in sys.path:
            sys.path.append(str(_PACKAGE))
        return {modality: self._spec(modality, given) for modality in MEDIA}

    def _spec(self, modality: str, given: "Given") -> EncoderSpec:
        named = self.family.name
        windows = _WINDOWS.get(named, _WINDOWS["imagebind"]).get(modality, {})
        fields = {
            "name": f"{self.name}-{modality}",
            "takes": MEDIA[modality],
            "width": self.width,
            "max_item_bytes": _LARGEST_ITEM,
            **windows,
        }
        if self.is_fake:
            options: dict[str, Any] = {
                "seed": f"{named}/{modality}",
                "length": length_of(named, modality),
            }
            return EncoderSpec.model_validate({**fields, "kind": _FAKE_KIND, "options": options})
        accepted = {"accepted_licence": self.family.licence_id} if given.accepted else {}
        return EncoderSpec.model_validate(
            {
                **fields,
                "kind": _KINDS[named],
                "model": given.weights and str(given.weights),
                "device": given.device,
                "num_gpus": 0 if given.device == "cpu" else 1,
                "options": {"modality": modality, **accepted},
            }
        )


def length_of(family: str, modality: str) -> float:
    """Length of the features of a modality, as they leave the model."""
    return _LENGTHS[family].get(modality, 1.0)


def known_encoders() -> tuple[str, ...]:
    """Names of all encoders: real ones, then stand-ins."""
    return (*FAMILIES, *(_FAKE + name for name in FAMILIES))


def choose_encoder(name: str, width: int | None = None) -> ChosenEncoder:
    """Return an encoder by its name. `width`: in place of the published one, for a stand-in."""
    return ChosenEncoder(name, width or FAMILIES[name.rpartition("-")[2]].width)
