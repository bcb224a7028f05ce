"""Weights & Biases: a run for a model, a step for each version. `pip install wandb`, then

    python wandb_run.py shapes --project cmcl        # until Ctrl-C; --once: what there is, and end

With WANDB_MODE=offline, `wandb sync` sends the files later. Started again, it continues the run, which ignores steps
that it has.
"""

import argparse
from uuid import NAMESPACE_URL, uuid5

import wandb
from follow import URL, versions

from cmcl import Client


def main() -> None:
    """Write what the arguments name."""
    parser = argparse.ArgumentParser(description="Versions in Weights & Biases.")
    parser.add_argument("model")
    parser.add_argument("--project", default="cmcl")
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    with Client(URL) as client:
        # The same after a restart.
        identifier = uuid5(NAMESPACE_URL, f"{URL}/{given.model}").hex
        with wandb.init(
            project=given.project, name=given.model, id=identifier, resume="allow"
        ) as run:
            for published in versions(client, given.model, once=given.once):
                run.config.update(published.settings(), allow_val_change=True)
                values = {
                    **published.metrics(),
                    "pictures": wandb.Html(published.picture(), inject=False),
                }
                run.log(values, step=published.version.version, commit=True)


if __name__ == "__main__":
    main()
