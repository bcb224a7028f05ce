"""A memory limit on one process: a control group of the memory controller.

It includes all memory of the process and the page cache that it fills. Page cache is reclaimed near
the limit; beyond the limit the process is killed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONTROLLER = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class Memory:
    """Bytes of private memory, of page cache, and the peak of their sum."""

    own: int
    cache: int
    most: int


class Limit:
    """One control group. Raises OSError if it cannot be created; needs root and cgroup version
    1."""

    def __init__(self, name: str, limit: int) -> None:
        self._folder = _CONTROLLER / name
        self._folder.mkdir()
        (self._folder / "memory.limit_in_bytes").write_text(str(limit))

    def join(self) -> None:
        """Add the calling process; to be called before it allocates memory."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def memory(self) -> Memory:
        """Now."""
        lines = (self._folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        most = int((self._folder / "memory.max_usage_in_bytes").read_text())
        return Memory(stat["total_rss"], stat["total_cache"], most)

    def remove(self) -> None:
        """Remove the group, after its process has ended."""
        self._folder.rmdir()


@contextmanager
def limits(count: int, limit: int) -> Iterator[list[Limit]]:
    """Create control groups, and remove them at the end."""
    made = [Limit(f"cmcl-large-{os.getpid()}-{number}", limit) for number in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.remove()
