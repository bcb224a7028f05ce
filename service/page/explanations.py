"""What the page says about states, reasons, numbers and errors: texts.toml, read once."""

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from cmcl.contract.api.events import EventKind

Tone = Literal["good", "busy", "wait", "hold", "bad", "quiet"]


@dataclass(frozen=True)
class Saying:
    """A state as the page shows it: a word, its colour and sign, and a sentence."""

    label: str
    tone: Tone
    sentence: str


@dataclass(frozen=True)
class Remedy:
    """Why something ended, and what to do next. `needs_other_data`: a retry would end for the same reason."""

    sentence: str
    next_step: str
    needs_other_data: bool = False


_READ: dict[str, dict[str, Any]] = tomllib.loads(
    (resources.files(__package__) / "texts.toml").read_text("utf-8")
)
STATES = {name: Saying(**each) for name, each in _READ["states"].items()}
KINDS = {name: Saying(**each) for name, each in _READ["kinds"].items()}
REASONS = {name: Remedy(**each) for name, each in _READ["reasons"].items()}
PHASES: dict[str, str] = _READ["phases"]
NEXT_STEPS: dict[str, str] = _READ["next_steps"]
EXPLANATIONS: dict[str, tuple[str, str]] = _READ["explanations"]
DONE: dict[str, str] = _READ["done"]
EVENT_TONES: dict[str, Tone] = {
    **{f"job.{state}": saying.tone for state, saying in STATES.items()},
    EventKind.JOB_CANCEL_REQUESTED: "hold",
    EventKind.VERSION_PUBLISHED: "good",
    EventKind.VERSION_PROMOTED: "good",
    EventKind.VERSION_ROLLED_BACK: "hold",
    EventKind.MODEL_DRIFTED: "hold",
}
# A state has one word wherever the page names it.
EVENT_LABELS: dict[str, str] = {
    **{kind: kind.replace(".", " ").replace("_", " ") for kind in EventKind},
    **{f"job.{state}": f"job {saying.label}" for state, saying in STATES.items()},
}
