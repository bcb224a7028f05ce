"""Prometheus and its tool for checking rules: from PATH, or unpacked from Debian's packages.

No root is needed for that: the package is downloaded and unpacked into .cmcl/prometheus, once.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.architecture.repository import ROOT

_FOLDER = ROOT / ".cmcl" / "prometheus"
# Its own package since Debian 13, a part of the other one before.
_PACKAGES = {"promtool": ("promtool", "prometheus"), "prometheus": ("prometheus",)}
_SECONDS = 90


class NoPromtool(Exception):
    """The tool is missing and cannot be downloaded; the message says why."""


def find_program(name: str) -> Path:
    """`promtool` or `prometheus`. Raises NoPromtool."""
    installed = shutil.which(name)
    if installed:
        return Path(installed)
    kept = _FOLDER / name
    if not kept.exists():
        _fetch(kept)
    return kept


def run_promtool(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run it on files or on a text, and return its output. Raises NoPromtool."""
    command = [str(find_program("promtool")), *arguments]
    return subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False
    )


def _fetch(target: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise NoPromtool(f"{target.name} is not on PATH, and there is no apt-get to get it with")
    target.parent.mkdir(parents=True, exist_ok=True)
    complaints = []
    for package in _PACKAGES[target.name]:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            complaint = _unpack(package, Path(folder))
            found = Path(folder) / "usr" / "bin" / target.name
            if found.exists():
                found.replace(target)
                return
            complaints.append(f"{package}: {complaint or 'it is not in this package'}")
    raise NoPromtool(f"{target.name} cannot be had: {'; '.join(complaints)}")


def _unpack(package: str, folder: Path) -> str:
    """Download and unpack; return the error message, or nothing."""
    try:
        _run(["apt-get", "download", package], folder)
        (archive,) = folder.glob("*.deb")
        _run(["dpkg", "-x", archive.name, "."], folder)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        output = getattr(error, "stderr", None) or str(error)
        return str(output).strip().splitlines()[-1]
    return ""


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=_SECONDS
    )
