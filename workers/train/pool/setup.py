"""What a group of ranks consists of: its size, and the code that it runs."""

import argparse
import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import workers
from cmcl import contract
from cmcl.contract.methods import installed_methods

# Packages that results may depend on, besides our own code.
_PACKAGES = ("torch", "ray", "numpy")


@dataclass(frozen=True)
class PoolSetup:
    """A group of ranks. An attempt with another setup needs another group.

    `code`: digest of the code that it runs. Digests of one process are compared with each other, not those of machines.
    """

    code: str
    ranks: int
    min_ranks: int
    gpus_per_rank: float


def current_setup(ranks: int, min_ranks: int, gpus_per_rank: float) -> PoolSetup:
    """The setup of a group that starts now: with the code that is installed here, which may be edited in place."""
    return PoolSetup(_code_digest(), ranks, min_ranks, gpus_per_rank)


def add_rank_options(parser: argparse.ArgumentParser, default: int) -> None:
    """Add --ranks, --min-ranks and --gpus-per-rank."""
    parser.add_argument("--ranks", type=int, default=default, help="processes that share the batch")
    parser.add_argument(
        "--min-ranks",
        type=int,
        help="the fewest ranks to continue with if resources are missing (default: --ranks)",
    )
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)


def check_rank_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, fewest: int
) -> None:
    """Fill in defaults; exit with a message for values that are out of range. `fewest`: of `--ranks`."""
    if arguments.ranks < fewest:
        parser.error(f"--ranks is {arguments.ranks}; it must be {fewest} or more")
    if arguments.min_ranks is None:
        arguments.min_ranks = arguments.ranks
    if not fewest <= arguments.min_ranks <= arguments.ranks:
        parser.error(
            f"--min-ranks is {arguments.min_ranks}; it must be from {fewest} to --ranks, "
            f"which is {arguments.ranks}"
        )
    if not arguments.gpus_per_rank >= 0:
        parser.error(f"--gpus-per-rank is {arguments.gpus_per_rank:g}; it must be 0 or more")


def _code_digest() -> str:
    """Digest of times and sizes of our sources, versions of `_PACKAGES`, and installed methods."""
    digest = hashlib.blake2b(digest_size=16)
    for package in (workers, contract):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(_state_of(path))
    for name in _PACKAGES:
        digest.update(f"{name}={version(name)}".encode())
    for name, point in sorted(installed_methods().items()):
        digest.update(f"{name}={point.value} {point.dist and point.dist.version}".encode())
        digest.update(_source_of(point.module))
    return digest.hexdigest()


def _source_of(module: str) -> bytes:
    """State of a method's module, which may be edited in place; empty if it cannot be found."""
    try:
        spec = find_spec(module)
    except ImportError:
        return b""
    path = Path(spec.origin) if spec and spec.origin else None
    return _state_of(path) if path and path.is_file() else b""


def _state_of(path: Path) -> bytes:
    found = path.stat()
    return f"{path} {found.st_mtime_ns} {found.st_size}".encode()
