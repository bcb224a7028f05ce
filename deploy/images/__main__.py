"""Build both images, test them, and report their sizes.

`python -m deploy.images` (make images). Needs root, and Debian's buildah, netavark and debootstrap. The
last line is one JSON document. The folder of `--out` gets it too, with a page and the bills of materials.
The worker is tested together with a service, so it cannot be built alone. `--again` builds a second time,
from an empty folder and a new base; exit status 1 means that something differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from deploy.images.buildah import Buildah, BuildFailed, NoBuildah
from deploy.images.debian import make_base
from deploy.images.measure import Built, differences, measure
from deploy.images.page import markdown
from deploy.images.trial import TrialFailed, try_both, try_service

ROOT = Path(__file__).parents[2]
TARGETS = ("service", "worker")
LOCKS = {"cuda": "worker.lock", "cpu": "worker-cpu.lock"}
# The default of the Dockerfile, so that images do not depend on the time of the build.
EPOCH = 1580601600


def version() -> str:
    """Return the version of pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def revision() -> str:
    """Return the commit, marked if files have changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def build(buildah: Buildah, target: str, accelerator: str, out: Path) -> Built:
    """Build one image, and write its SBOM to `out`. Raises BuildFailed and NoBuildah."""
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
    return measure(buildah, image, seconds, out / f"cmcl-{target}.sbom.cdx.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TARGETS[:1], help="build and test only this image")
    parser.add_argument(
        "--accelerator", choices=LOCKS, default="cpu", help="accelerator of the worker"
    )
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/cmcl-images"))  # noqa: S108
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".cmcl" / "images", help="folder for SBOMs"
    )
    parser.add_argument("--report", type=Path, help="file for the JSON document")
    parser.add_argument("--again", action="store_true", help="build twice and compare")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        report, found = run(options)
    except (NoBuildah, BuildFailed, TrialFailed) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    line = json.dumps(report)
    (options.out / "images.json").write_text(line + "\n")
    (options.out / "images.md").write_text(markdown(report))
    if options.report:
        options.report.write_text(line)
    print(*found, line, sep="\n")
    return 1 if found else 0


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Return the report and the differences of two builds. Raises NoBuildah, BuildFailed, TrialFailed."""
    targets = [options.only] if options.only else list(TARGETS)
    before = os.getloadavg()[0]
    buildah = Buildah.find(options.folder)
    built = [build(buildah, target, options.accelerator, options.out) for target in targets]
    tried = trial(buildah, built)
    second = build_again(options, targets) if options.again else []
    here = {name: machine()[name] for name in ("cpu", "cores", "memory_gib")}
    report = {
        "machine": {**here, "load": [round(load, 1) for load in (before, os.getloadavg()[0])]},
        "configuration": {
            "cmcl": version(),
            "commit": revision(),
            **buildah.described(),
            "lock of the worker": LOCKS[options.accelerator],
        },
        "images": [asdict(image) for image in built],
        "again": [asdict(image) for image in second],
        "trial": tried,
    }
    pairs = zip(built, second, strict=False)
    return report, [line for first, other in pairs for line in differences(first, other)]


def build_again(options: argparse.Namespace, targets: Sequence[str]) -> list[Built]:
    """Build again from an empty folder, and delete the result except for its figures."""
    folder = options.folder / "again"
    with tempfile.TemporaryDirectory() as out:
        buildah = Buildah.find(folder)
        try:
            return [build(buildah, target, options.accelerator, Path(out)) for target in targets]
        finally:
            buildah.forget()


def trial(buildah: Buildah, built: Sequence[Built]) -> dict[str, Any]:
    """Test the images and return the results. Raises TrialFailed."""
    images = [image.image for image in built]
    with tempfile.TemporaryDirectory(dir=buildah.folder) as name:
        folder = Path(name)
        # The images' user needs access; temporary folders are private to root.
        folder.chmod(0o755)
        if len(images) == 1:
            return try_service(buildah, images[0], folder)
        return try_both(buildah, images[0], images[1], folder)


if __name__ == "__main__":
    sys.exit(main())
