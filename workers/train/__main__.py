"""`python -m workers.train`: run one attempt of one job, with ranks that are started for it."""

import argparse
from collections.abc import Sequence

from workers.train.settings import add_rank_options, ranks_from_options


def main() -> None:
    """Run the attempt. An error exits with its message and a non-zero status."""
    arguments = parse()
    attempt = (arguments.store, arguments.job, arguments.attempt)
    if arguments.without_ray:
        import torch

        from workers.train.job import train_dataset

        train_dataset(*attempt, torch.device("cpu"))
    else:
        from workers.train.ranks import run_attempt

        run_attempt(*attempt, arguments.ranks)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid. `ranks` are `Ranks`."""
    parser = argparse.ArgumentParser(prog="python -m workers.train", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    add_rank_options(parser, default=1)
    parser.add_argument(
        "--without-ray", action="store_true", help="train in this process, with one rank"
    )
    arguments = parser.parse_args(argv)
    arguments.ranks = ranks_from_options(parser, arguments, fewest=1)
    return arguments


if __name__ == "__main__":
    main()
