"""A version with every kind of head, its export unpacked by plain tarfile, and an interpreter without cmcl."""

import io
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
import torch

from cmcl.contract.model import ModelSpec
from tests.fakes.versions import publish_version, random_heads
from tests.unit.serve.conftest import MODEL, Replica
from workers.model.heads import ModalityHeads
from workers.nullspace.conditioning import Conditioning

# Run by `run_without_cmcl` in front of a program.
_ISOLATED = f"""
import sys
from importlib.util import find_spec
sys.path.append({sysconfig.get_paths()["purelib"]!r})
assert [name for name in ("cmcl", "service", "workers") if find_spec(name)] == []
"""

# All are lifted and conditioned.
SPEC = ModelSpec(width=6, modalities={"image": 9, "text": 7, "depth": 5}, lift=11)


def heads(seed: int = 1) -> ModalityHeads:
    """Features of `text` lie in a narrow cone, as those of encoders do, and the map enlarges what is small."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def symmetric(width: int) -> torch.Tensor:
        square = random(width, width)
        return square + square.mT

    made = random_heads(SPEC, seed).conditioned(
        {
            "image": Conditioning(random(9) / 5, symmetric(9)),
            "text": Conditioning(torch.full((7,), 7**-0.5), 30 * symmetric(7)),
            # As improve does features in a narrow cone.
            "depth": Conditioning(random(SPEC.widths["depth"]) / 5, torch.tensor([4.0])),
        }
    )
    # Beside the zeros that a lift begins with.
    return made.replaced({name: random(*each.shape) for name, each in made.weights.items()})


def features(modality: str, rows: int = 40) -> np.ndarray:
    """Rows of any length, near each other for `text`."""
    random = np.random.default_rng(5)
    width = SPEC.widths[modality]
    about = 1.0 if modality == "text" else 0.0
    scale = 0.3 if modality == "text" else 1.0
    return (17 * (about + scale * random.normal(size=(rows, width)))).astype(np.float32)


def publish(replica: Replica) -> None:
    """Make it version 1 of the model, and live."""
    publish_version(replica.store, MODEL, 1, SPEC, heads(), 1)
    replica.poll()


def answered(replica: Replica, modality: str) -> np.ndarray:
    """The endpoint's embeddings of `features`."""
    response = replica.embed(modality=modality, input=features(modality).tolist())
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


def unpacked(replica: Replica, format_: str, folder: Path, reference: str = MODEL) -> Path:
    """Export a version and unpack it to the folder."""
    response = replica.get(f"/v1/models/{reference}/export?format={format_}")
    assert response.status_code == 200, response.text
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run_without_cmcl(program: str, *arguments: str) -> None:
    """Run a program where no package of this repository can be imported, as in an environment without cmcl.

    The installed packages are searched, but neither the working folder, nor PYTHONPATH, nor the file in
    site-packages that makes the checkout importable (-S).
    """
    command = [sys.executable, "-I", "-S", "-W", "error::DeprecationWarning", "-c"]
    done = subprocess.run(
        [*command, _ISOLATED + program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
