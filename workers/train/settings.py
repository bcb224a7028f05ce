"""Settings of training: environment variables, and of what a group of ranks consists. Without torch and Ray."""

import argparse
import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

import workers
from cmcl import contract
from cmcl.contract.methods import installed_methods

# Packages that results may depend on, besides our own code.
_PACKAGES = ("torch", "ray", "numpy")


class TrainSettings(BaseSettings):
    """Environment variables of the training processes (prefix `CMCL_`)."""

    model_config = SettingsConfigDict(env_prefix="CMCL_", frozen=True, extra="ignore")

    checkpoint_seconds: float = Field(
        default=60,
        gt=0,
        description="seconds between two checkpoints of a dataset; at most this much is trained again",
    )
    scratch_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of the local disk (TMPDIR) that one rank may use for rows and copies of "
        "shards; 0: all free space",
    )
    peer_seconds: float = Field(
        default=60,
        ge=2,
        le=3600,
        description="timeout of collectives and health checks; a rank that exceeds it counts as hung, and "
        "all ranks are replaced",
    )


@dataclass(frozen=True)
class Ranks:
    """How many processes share the batch, and how many GPUs each of them has.

    A run starts with fewer than `most`, down to `fewest`, if the cluster has no more. The global batch
    is the same for any number, and so is the version, to 1e-4 in the heads.
    """

    most: int
    fewest: int
    gpus_each: float = 0.0


def code_digest() -> str:
    """Digest of times and sizes of our sources, which may be edited in place, of packages, and of installed methods.

    Digests of one process are compared with each other, not those of machines.
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in (Path(workers.__path__[0]), Path(contract.__path__[0]).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(_state_of(path))
    for name in _PACKAGES:
        digest.update(f"{name}={version(name)}".encode())
    for name, point in sorted(installed_methods().items()):
        digest.update(f"{name}={point.value} {point.dist and point.dist.version}".encode())
        digest.update(_source_of(point.module))
    return digest.hexdigest()


def _source_of(module: str) -> bytes:
    """State of a method's module; empty if it cannot be found."""
    try:
        spec = find_spec(module)
    except ImportError:
        return b""
    path = Path(spec.origin) if spec and spec.origin else None
    return _state_of(path) if path and path.is_file() else b""


def _state_of(path: Path) -> bytes:
    found = path.stat()
    return f"{path} {found.st_mtime_ns} {found.st_size}".encode()


@dataclass(frozen=True)
class PoolSetup:
    """A group of ranks and the code that it runs. An attempt with another setup needs another group."""

    ranks: Ranks
    code: str = field(default_factory=code_digest)


def add_rank_options(parser: argparse.ArgumentParser, default: int) -> None:
    """Add --ranks, --min-ranks and --gpus-per-rank."""
    parser.add_argument("--ranks", type=int, default=default, help="processes that share the batch")
    parser.add_argument(
        "--min-ranks",
        type=int,
        help="the fewest ranks to continue with if resources are missing (default: --ranks)",
    )
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)


def ranks_from_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, fewest: int
) -> Ranks:
    """Exit with a message for values that are out of range. `fewest`: of `--ranks`."""
    most, gpus = arguments.ranks, arguments.gpus_per_rank
    least = most if arguments.min_ranks is None else arguments.min_ranks
    if most < fewest:
        parser.error(f"--ranks is {most}; it must be {fewest} or more")
    if not fewest <= least <= most:
        parser.error(
            f"--min-ranks is {least}; it must be from {fewest} to --ranks, which is {most}"
        )
    if not gpus >= 0:
        parser.error(f"--gpus-per-rank is {gpus:g}; it must be 0 or more")
    return Ranks(most, least, gpus)
