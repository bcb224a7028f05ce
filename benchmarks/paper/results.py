"""Cells and their results: one encoder, method and seed. Each finished cell is one file.

A cell is stored under a digest of everything that decides it, so that a run that continues, or repeats with
another setting or other code, never mixes results.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.paper.metrics import StepFigures, restored, stored
from benchmarks.paper.protocol import Preset
from benchmarks.runs import place_of

_CODE = (
    *("workers/methods", "workers/model", "workers/nullspace", "workers/train"),
    *("benchmarks/baselines", "benchmarks/chain.py", "benchmarks/joint.py", "benchmarks/runs.py"),
    *("benchmarks/paper/cells.py", "benchmarks/paper/metrics.py", "benchmarks/paper/unscaled.py"),
    # Settings of the protocol, and the product's defaults.
    *("benchmarks/paper/protocol.py", "benchmarks/paper/features.py", "cmcl/contract/model.py"),
)


@dataclass(frozen=True)
class Cell:
    """One run. `features`: source, file and digest of its features. `training`: fields of TrainingSpec in place of
    the preset's. `joint_epochs`: of joint training. `lift`: None is the product's choice.
    """

    encoder: str
    family: str
    width: int
    method: str
    seed: int
    preset: Preset
    features: tuple[tuple[str, str, str], ...]
    training: tuple[tuple[str, Any], ...] = ()
    joint_epochs: int = 20
    lift: int | None = None

    def __str__(self) -> str:
        return f"{self.encoder}, {self.method}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Digest over everything that decides the result, but where the features lie."""
        named = [(source, digest) for source, _, digest in self.features]
        code = code_digest(place_of(self.method))
        described = {**self.__dict__, "features": named, "code": code}
        text = json.dumps(described, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        """Name of its result."""
        method = self.method.replace(":", "-")
        return f"{self.encoder}-{method}-{self.seed}-{self.key}.json"


@cache
def code_digest(place: str | None) -> str:
    """Digest of the code that trains and measures, and of the module of a method: results of other code do not
    count."""
    root = Path(__file__).parents[2]
    files = [path for name in _CODE for path in sorted((root / name).rglob("*.py"))]
    files += [root / name for name in _CODE if name.endswith(".py")]
    found = find_spec(place.partition(":")[0]) if place else None
    files += [Path(found.origin)] if found and found.origin else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CellResult:
    """`matrix[t][s]`: step s after step t was learned; one row without an order. `seconds`: CPU time of training
    alone, which has one thread. `error`: why it failed; everything else is then empty.
    """

    matrix: list[list[StepFigures]]
    seconds: float
    step_seconds: list[float]
    error: str = ""

    def written(self) -> str:
        """As JSON."""
        return json.dumps(
            {
                "matrix": stored(self.matrix),
                "seconds": self.seconds,
                "step_seconds": self.step_seconds,
            }
        )


def read_result(folder: Path, cell: Cell) -> CellResult | None:
    """The kept result of a cell, or None."""
    try:
        found = json.loads((folder / cell.file_name).read_text())
        return CellResult(restored(found["matrix"]), found["seconds"], found["step_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_result(folder: Path, cell: Cell, result: CellResult) -> CellResult:
    """Write a result, unless it failed, and return it."""
    if not result.error:
        partial_file = folder / f"{cell.file_name}.partial"
        partial_file.write_text(result.written())
        partial_file.replace(folder / cell.file_name)
    return result
