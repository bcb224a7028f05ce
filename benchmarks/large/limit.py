"""A limit on one process that the kernel keeps: a control group of the memory controller.

It counts all memory of the process and the page cache that it causes; page cache is given back when
the limit is near, and beyond it the process is killed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONTROLLER = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class Memory:
    """Bytes: what the process has for itself, what it has in the page cache, the most of both."""

    own: int
    cache: int
    most: int


class Limit:
    """One group. Raises OSError where groups cannot be made (it takes root and cgroup version 1)."""

    def __init__(self, name: str, limit: int) -> None:
        self._folder = _CONTROLLER / name
        self._folder.mkdir()
        (self._folder / "memory.limit_in_bytes").write_text(str(limit))

    def join(self) -> None:
        """To be called by the new process before it does anything else."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def memory(self) -> Memory:
        """Now."""
        lines = (self._folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        most = int((self._folder / "memory.max_usage_in_bytes").read_text())
        return Memory(stat["total_rss"], stat["total_cache"], most)

    def remove(self) -> None:
        """Once its process has ended."""
        self._folder.rmdir()


@contextmanager
def limits(count: int, limit: int) -> Iterator[list[Limit]]:
    """Groups for so many processes, gone in the end."""
    made = [Limit(f"cmcl-large-{os.getpid()}-{number}", limit) for number in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.remove()
