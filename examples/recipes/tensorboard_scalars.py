"""TensorBoard: scalars with a step for each version. `pip install tensorboardX`, then

    python tensorboard_scalars.py shapes runs        # until Ctrl-C; --once: what there is, and end

Started again, it writes the same points again, which TensorBoard draws as one.
"""

import argparse
from pathlib import Path

from follow import URL, versions
from tensorboardX import SummaryWriter

from cmcl import Client


def main() -> None:
    """Write what the arguments name."""
    parser = argparse.ArgumentParser(description="Versions in TensorBoard.")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--once", action="store_true")
    given = parser.parse_args()
    with Client(URL) as client, SummaryWriter(str(given.folder / given.model)) as writer:
        for published in versions(client, given.model, once=given.once):
            version = published.version
            at = version.created_at.timestamp()
            for name, value in published.metrics().items():
                writer.add_scalar(name, value, version.version, at)
            learned = "\n".join(f"- {line.name} ({line.dataset})" for line in version.lineage)
            writer.add_text("lineage", learned, version.version, at)
            writer.flush()


if __name__ == "__main__":
    main()
