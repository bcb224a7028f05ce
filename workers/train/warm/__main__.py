"""`python -m workers.train.warm`: start the resident ranks before the first attempt asks for them."""

import argparse

from workers.train.warm.arguments import add_ranks, settle_ranks
from workers.train.warm.client import setup_here
from workers.train.warm.start import open_resident


def main() -> None:
    """Ends as soon as they are starting; nothing is wrong if they are there already."""
    parser = argparse.ArgumentParser(prog="python -m workers.train.warm", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    add_ranks(parser)
    arguments = parser.parse_args()
    settle_ranks(parser, arguments)
    setup = setup_here(arguments.ranks, arguments.min_ranks, arguments.gpus_per_rank)
    open_resident(arguments.store, setup, arguments.idle_seconds)


if __name__ == "__main__":
    main()
