"""`python -m benchmarks.large.rank`: one rank of the job in a separate process."""

import argparse
from datetime import timedelta
from pathlib import Path

import torch

from benchmarks.rank_group import joined
from workers.train.job import train_dataset


def main() -> None:
    """Run the training job's main path. Ranks rendezvous through a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large.rank")
    for name in ("--store", "--job", "--meeting"):
        parser.add_argument(name, required=True)
    for name in ("--rank", "--size"):
        parser.add_argument(name, required=True, type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with joined(Path(options.meeting), options.rank, options.size, timedelta(minutes=30)):
        train_dataset(options.store, options.job, 1, torch.device("cpu"))


if __name__ == "__main__":
    main()
