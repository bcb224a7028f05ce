"""`python -m workers.train.warm`: start the resident ranks before the first attempt asks for them."""

import argparse

import ray

from workers.train.warm.client import resident_here, setup_here


def main() -> None:
    """Ends as soon as they are starting; nothing is wrong if they are there already."""
    parser = argparse.ArgumentParser(prog="python -m workers.train.warm", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)
    arguments = parser.parse_args()
    ray.init()
    setup = setup_here(arguments.ranks, arguments.gpus_per_rank)
    ray.get(resident_here(arguments.store, setup).is_there.remote())


if __name__ == "__main__":
    main()
