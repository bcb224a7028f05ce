"""`python -m workers.train`: run one attempt of one job. This is what the service asks Ray to start."""

import argparse


def main() -> None:
    """Parse, run, done: an error ends the process with its traceback and a failed job."""
    arguments = _parser().parse_args()
    if arguments.without_ray:
        import torch

        from workers.train.job import train_dataset

        train_dataset(arguments.store, arguments.job, arguments.attempt, torch.device("cpu"))
        return
    # Imported here because each of the two ways takes seconds to import and needs the other not.
    from workers.train.ray_run import run_on_ray

    run_on_ray(
        arguments.store,
        arguments.job,
        arguments.attempt,
        arguments.ranks,
        arguments.gpus_per_rank,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.train", description=__doc__)
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the batch")
    parser.add_argument("--gpus-per-rank", type=float, default=0.0)
    parser.add_argument(
        "--without-ray", action="store_true", help="train in this process alone, with one rank"
    )
    return parser


if __name__ == "__main__":
    main()
