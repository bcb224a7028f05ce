"""`python -m workers.train`: run one attempt of one job. This is what the service asks Ray to start.

The ranks that learned the attempt before are asked first; where they cannot be had, the attempt
gets ranks of its own. Imports are where they are needed: they are most of what this process does.
"""

import argparse
import sys
from collections.abc import Sequence

from workers.train.warm.arguments import add_ranks, settle_ranks
from workers.train.warm.desk import PRIORITIES


def main() -> None:
    """Parse, run, done: an error ends the process with its words and a failed job."""
    arguments = parse()
    if arguments.without_ray:
        _run_here(arguments)
    elif arguments.cold or not _run_warm(arguments):
        _run_cold(arguments)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; ends the process with a word for what cannot be."""
    parser = _parser()
    arguments = parser.parse_args(words)
    settle_ranks(parser, arguments)
    return arguments


def _run_here(arguments: argparse.Namespace) -> None:
    import torch

    from workers.train.job import train_dataset

    train_dataset(arguments.store, arguments.job, arguments.attempt, torch.device("cpu"))


def _run_warm(arguments: argparse.Namespace) -> bool:
    """False where the attempt needs ranks of its own; exits where it failed."""
    from workers.train.warm.client import learn_warm, setup_here
    from workers.train.warm.desk import Attempt
    from workers.train.warm.wire import Request

    attempt = Attempt(arguments.store, arguments.job, arguments.attempt)
    setup = setup_here(arguments.ranks, arguments.min_ranks, arguments.gpus_per_rank)
    request = Request(attempt, setup, arguments.priority, arguments.idle_seconds)
    answer = learn_warm(request)
    if answer is not None and answer.state == "failed":
        sys.exit(answer.words)
    return answer is not None


def _run_cold(arguments: argparse.Namespace) -> None:
    from workers.train.ray_run import Ranks, run_on_ray

    ranks = Ranks(arguments.ranks, arguments.min_ranks, arguments.gpus_per_rank)
    run_on_ray(arguments.store, arguments.job, arguments.attempt, ranks)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.train", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    add_ranks(parser)
    parser.add_argument(
        "--priority", choices=PRIORITIES, default="normal", help="place in the line for warm ranks"
    )
    parser.add_argument(
        "--cold", action="store_true", help="train with ranks that are started for this attempt"
    )
    parser.add_argument(
        "--without-ray", action="store_true", help="train in this process alone, with one rank"
    )
    return parser


if __name__ == "__main__":
    main()
