"""`python -m workers.train.warm`: start the resident ranks before the first attempt asks for them."""

import argparse

from workers.train.warm.client import setup_here
from workers.train.warm.start import open_resident


def main() -> None:
    """Ends as soon as they are starting; nothing is wrong if they are there already."""
    parser = argparse.ArgumentParser(prog="python -m workers.train.warm", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)
    arguments = parser.parse_args()
    open_resident(arguments.store, setup_here(arguments.ranks, arguments.gpus_per_rank))


if __name__ == "__main__":
    main()
