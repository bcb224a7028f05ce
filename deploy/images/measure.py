"""Sizes and contents of an image, and comparison of two builds."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.images.buildah import Buildah, Container

# Limit of a pull of the service's image.
SERVICE_BYTES = 350e6
# Packages whose versions are reported.
_REPORTED = ("torch", "ray", "pyarrow")


@dataclass(frozen=True)
class Layer:
    """A layer. `files`: digest of its uncompressed content."""

    files: str
    packed_bytes: int
    made_by: str


@dataclass(frozen=True)
class Built:
    """An image with its sizes in a registry and on a node."""

    image: str
    digest: str
    user: str
    build_seconds: float
    packed_bytes: int
    unpacked_bytes: int
    packages: int
    versions: Mapping[str, str]
    layers: Sequence[Layer]


def measure(buildah: Buildah, image: str, seconds: float, sbom: Path) -> Built:
    """Measure an image, and write its bill of materials to `sbom`."""
    digest, layers = _packed(buildah, image)
    with buildah.container(image) as container:
        shutil.copyfile(container.root / "opt/cmcl/sbom.cdx.json", sbom)
        python, user = _python(container), container.user
    components = json.loads(sbom.read_text())["components"]
    installed = {component["name"]: component["version"] for component in components}
    versions = {name: installed[name] for name in _REPORTED if name in installed}
    return Built(
        image=image,
        digest=digest,
        user=user,
        build_seconds=seconds,
        packed_bytes=sum(layer.packed_bytes for layer in layers),
        unpacked_bytes=buildah.unpacked_bytes(image),
        packages=len(components),
        versions={"python": python, **versions},
        layers=layers,
    )


def _packed(buildah: Buildah, image: str) -> tuple[str, list[Layer]]:
    with tempfile.TemporaryDirectory(dir=buildah.folder) as name:
        folder = Path(name)
        buildah.pack(image, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        digest: str = manifest["config"]["digest"]
        config = json.loads((folder / digest.removeprefix("sha256:")).read_text())
    return digest, layers_of(manifest, config)


def layers_of(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> list[Layer]:
    """Return the layers of an image. Steps of the Dockerfile that change no file have none."""
    steps = [step["created_by"] for step in config["history"] if not step.get("empty_layer")]
    files = config["rootfs"]["diff_ids"]
    sizes = [layer["size"] for layer in manifest["layers"]]
    return [Layer(*layer) for layer in zip(files, sizes, steps, strict=True)]


def _python(container: Container) -> str:
    lines = (container.root / "opt/cmcl/pyvenv.cfg").read_text().splitlines()
    said = dict(line.split(" = ", 1) for line in lines if " = " in line)
    return said["version"]


def differences(first: Built, second: Built) -> list[str]:
    """Return one line per difference between two builds."""
    found = [
        f"{first.image}: layer {number} differs: {was.made_by}"
        for number, (was, became) in enumerate(zip(first.layers, second.layers, strict=False))
        if was.files != became.files
    ]
    if len(first.layers) != len(second.layers):
        found.append(f"{first.image}: {len(first.layers)} layers, then {len(second.layers)}")
    if not found and first.digest != second.digest:
        found.append(f"{first.image}: the same files, another configuration")
    return found
