"""The words that say how large a group of ranks is to be, and how long it stays."""

import argparse

# GPUs that nobody uses cost as much as others; the next attempt starts its ranks in half a minute.
IDLE_SECONDS = 1800.0


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """--ranks, --min-ranks, --gpus-per-rank and --idle-seconds."""
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the batch")
    parser.add_argument(
        "--min-ranks",
        type=int,
        help="go on with so few where there is no room for all; as many as --ranks by default",
    )
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)
    parser.add_argument(
        "--idle-seconds",
        type=float,
        default=IDLE_SECONDS,
        help="ranks that stay leave after so long without an attempt; 0 for never",
    )


def settle_ranks(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fill in what was not said; ends the process with a word for what cannot be."""
    if arguments.ranks < 1:
        parser.error(f"--ranks is {arguments.ranks}; it must be 1 or more")
    if arguments.min_ranks is None:
        arguments.min_ranks = arguments.ranks
    if not 1 <= arguments.min_ranks <= arguments.ranks:
        parser.error(
            f"--min-ranks is {arguments.min_ranks}; it must be from 1 to --ranks, "
            f"which is {arguments.ranks}"
        )
    for name in ("gpus_per_rank", "idle_seconds"):
        value = getattr(arguments, name)
        if not value >= 0:
            parser.error(f"--{name.replace('_', '-')} is {value:g}; it must be 0 or more")
