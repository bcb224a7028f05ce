"""`python -m workers.train`: run one attempt of one job. The entry point that the service submits.

The attempt joins the pool of ranks, and gets ranks of its own if the pool cannot train it. Imports are
made where they are needed, since they take most of the time of this process.
"""

import argparse
import sys
from collections.abc import Sequence

from workers.train.pool.protocol import add_pool_options, check_pool_options


def main() -> None:
    """Run the attempt. An error exits with its message and a non-zero status."""
    arguments = parse()
    if arguments.without_ray:
        _run_in_process(arguments)
    elif arguments.cold or not _run_in_pool(arguments):
        _run_with_own_ranks(arguments)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    check_pool_options(parser, arguments)
    return arguments


def _run_in_process(arguments: argparse.Namespace) -> None:
    import torch

    from workers.train.job import train_dataset

    train_dataset(arguments.store, arguments.job, arguments.attempt, torch.device("cpu"))


def _run_in_pool(arguments: argparse.Namespace) -> bool:
    """Return False if the attempt needs ranks of its own; exit if it failed."""
    from workers.train.pool.client import current_setup, train_in_pool
    from workers.train.pool.protocol import Request
    from workers.train.pool.queue import Attempt

    attempt = Attempt(arguments.store, arguments.job, arguments.attempt)
    setup = current_setup(arguments.ranks, arguments.min_ranks, arguments.gpus_per_rank)
    request = Request(attempt, setup, arguments.owner, arguments.idle_seconds)
    status = train_in_pool(request)
    if status is not None and status.state == "failed":
        sys.exit(status.message)
    return status is not None


def _run_with_own_ranks(arguments: argparse.Namespace) -> None:
    from workers.train.ray_run import Ranks, run_on_ray

    ranks = Ranks(arguments.ranks, arguments.min_ranks, arguments.gpus_per_rank)
    run_on_ray(arguments.store, arguments.job, arguments.attempt, ranks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.train", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    add_pool_options(parser)
    parser.add_argument(
        "--owner", default="default", help="owner of the job: owners take turns in the pool"
    )
    parser.add_argument(
        "--cold", action="store_true", help="train with ranks that are started for this attempt"
    )
    parser.add_argument(
        "--without-ray", action="store_true", help="train in this process, with one rank"
    )
    return parser


if __name__ == "__main__":
    main()
