"""Builds both images, tries them, and says how large they are.

`python -m deploy.images` (make images). Needs root, and Debian's buildah, netavark and debootstrap. The
last line is one JSON document. The worker is tried together with a service, so it is not built alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.images.buildah import Buildah, BuildFailed, NoBuildah
from deploy.images.debian import make_base
from deploy.images.trial import TrialFailed, try_both, try_service

ROOT = Path(__file__).parents[2]
TARGETS = ("service", "worker")
LOCKS = {"cuda": "worker.lock", "cpu": "worker-cpu.lock"}
# The default of the Dockerfile: nothing in an image tells when it was built.
EPOCH = 1580601600


@dataclass(frozen=True)
class Built:
    """An image and what it weighs: as a registry keeps it, and on a node."""

    image: str
    digest: str
    build_seconds: float
    packed_bytes: int
    unpacked_bytes: int
    packages: int


def version() -> str:
    """The only place that names it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def revision() -> str:
    """The commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def build(buildah: Buildah, target: str, accelerator: str, out: Path) -> Built:
    """Build one image; its SBOM is left in `out`. Raises BuildFailed and NoBuildah."""
    image = f"localhost/cmcl-{target}:{version()}"
    arguments = {
        "BASE_IMAGE": make_base(buildah, EPOCH),
        "WORKER_LOCK": LOCKS[accelerator],
        "VERSION": version(),
        "REVISION": revision(),
    }
    started = time.monotonic()
    buildah.build(ROOT, target, image, arguments, EPOCH)
    seconds = round(time.monotonic() - started, 1)
    sbom = out / f"cmcl-{target}.sbom.cdx.json"
    with buildah.container(image) as container:
        shutil.copyfile(container.root / "opt/cmcl/sbom.cdx.json", sbom)
    return measure(buildah, image, seconds, sbom)


def measure(buildah: Buildah, image: str, seconds: float, sbom: Path) -> Built:
    """What it weighs, and how it is known."""
    with tempfile.TemporaryDirectory(dir=buildah.folder) as folder:
        buildah.pack(image, Path(folder))
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return Built(
        image=image,
        digest=manifest["config"]["digest"],
        build_seconds=seconds,
        packed_bytes=sum(layer["size"] for layer in manifest["layers"]),
        unpacked_bytes=buildah.unpacked_bytes(image),
        packages=len(json.loads(sbom.read_text())["components"]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TARGETS[:1], help="build and try this one alone")
    parser.add_argument("--accelerator", choices=LOCKS, default="cpu", help="of the worker")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/cmcl-images"))  # noqa: S108
    parser.add_argument("--out", type=Path, default=ROOT / ".cmcl" / "images", help="for SBOMs")
    parser.add_argument("--report", type=Path, help="write the last line here as well")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    targets = [options.only] if options.only else list(TARGETS)
    try:
        buildah = Buildah.find(options.folder)
        built = [build(buildah, target, options.accelerator, options.out) for target in targets]
        found = trial(buildah, built)
    except (NoBuildah, BuildFailed, TrialFailed) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    report = json.dumps({"images": [asdict(image) for image in built], "trial": found})
    if options.report:
        options.report.write_text(report)
    print(report)
    return 0


def trial(buildah: Buildah, built: Sequence[Built]) -> dict[str, Any]:
    """What became of them when they ran. Raises TrialFailed."""
    images = [image.image for image in built]
    with tempfile.TemporaryDirectory(dir=buildah.folder) as name:
        folder = Path(name)
        # The user of the images passes through; a temporary folder is for root alone.
        folder.chmod(0o755)
        if len(images) == 1:
            return try_service(buildah, images[0], folder)
        return try_both(buildah, images[0], images[1], folder)


if __name__ == "__main__":
    sys.exit(main())
