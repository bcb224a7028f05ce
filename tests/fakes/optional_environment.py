"""Environments of packages that the product does not need, for tests of other people's tools."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT

_INSTALL_SECONDS = 600


def optional_environment(name: str, *locks: str) -> Path:
    """Return the Python of `.cmcl/<name>`, which has the packages of the locks. Skips if they cannot be installed.

    It is made once, and again when a lock or the Python changes.
    """
    folder = ROOT / ".cmcl" / name
    python, installed = folder / "bin/python", folder / "installed.sha256"
    contents = b"".join((ROOT / lock).read_bytes() for lock in locks)
    digest = hashlib.sha256(sys.version.encode() + contents).hexdigest()
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Tests run in several processes.
        if not installed.exists() or installed.read_text() != digest:
            _install(folder, python, locks)
            installed.write_text(digest)
    return python


def _install(folder: Path, python: Path, locks: tuple[str, ...]) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(python)]
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [*sync, *locks],
    ):
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=_INSTALL_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"{' and '.join(locks)} cannot be installed: {error}")
        if done.returncode:
            pytest.skip(f"{' and '.join(locks)} cannot be installed: {done.stderr.strip()[-300:]}")
