"""A Debian base with Python, created with debootstrap where no image registry is reachable."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.images.buildah import Buildah, BuildFailed, NoBuildah

NAME = "localhost/cmcl-base:trixie"
_PACKAGES = "ca-certificates,python3,python3-venv"
# Files that Debian's slim images leave out, except licences.
_LEFT_OUT = (
    *("usr/share/man", "usr/share/info", "usr/share/locale"),
    *("var/cache/apt", "var/lib/apt/lists", "var/log"),
    # Contains inode numbers, the only difference of a second debootstrap.
    "var/cache/ldconfig",
)


def make_base(buildah: Buildah, epoch: int) -> str:
    """Return the name of the base image, creating it if missing. Raises NoBuildah and BuildFailed."""
    if buildah.has(NAME):
        return NAME
    if not shutil.which("debootstrap"):
        raise NoBuildah("debootstrap is not installed (apt-get install debootstrap)")
    with tempfile.TemporaryDirectory(dir=buildah.folder) as folder:
        tree = Path(folder) / "debian"
        _bootstrap(tree)
        for path in _superfluous(tree):
            path.unlink()
        buildah.import_tree(tree, NAME, epoch)
    return NAME


def _bootstrap(tree: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "trixie", str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"debootstrap ended with {done.returncode}:\n{done.stdout[-3000:]}")


def _superfluous(tree: Path) -> Iterator[Path]:
    """Delete files but keep folders, which packages expect."""
    for name in _LEFT_OUT:
        yield from (path for path in (tree / name).rglob("*") if not path.is_dir())
    for path in (tree / "usr/share/doc").rglob("*"):
        if not path.is_dir() and path.name != "copyright":
            yield path
