"""Files of the repository: tracked ones, and new ones that git does not ignore."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def repository_files() -> tuple[Path, ...]:
    """Paths relative to the root, without those that were deleted and not yet committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = sorted({Path(name) for name in listed.split("\0") if name})
    return tuple(path for path in paths if (ROOT / path).is_file())


def text_files() -> list[tuple[Path, str]]:
    """Text files, with their content."""
    found = []
    for path in repository_files():
        data = (ROOT / path).read_bytes()
        if b"\0" not in data:
            found.append((path, data.decode()))
    return found
