"""`python -m workers.train.pool`: start the pool of ranks before the first attempt needs it."""

import argparse

from workers.train.pool.actor import open_actor
from workers.train.pool.client import current_setup
from workers.train.pool.protocol import add_pool_options, check_pool_options


def main() -> None:
    """Return as soon as the ranks are starting. It is no error if they are there already."""
    parser = argparse.ArgumentParser(prog="python -m workers.train.pool", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    add_pool_options(parser)
    arguments = parser.parse_args()
    check_pool_options(parser, arguments)
    setup = current_setup(arguments.ranks, arguments.min_ranks, arguments.gpus_per_rank)
    open_actor(arguments.store, setup, arguments.idle_seconds)


if __name__ == "__main__":
    main()
