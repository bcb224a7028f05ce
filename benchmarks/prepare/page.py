"""The page of the benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.command_line import listed, table


def markdown(document: Mapping[str, Any], question: str) -> str:
    """The page of a document."""
    machine = {name: value for name, value in document["machine"].items() if value is not None}
    parts = [
        "# Preparation",
        "## Question",
        question,
        "## Machine",
        listed(machine),
        "## Configuration",
        listed(document["configuration"]),
        "## Encoding",
        (
            "Rows a second, medians. *Bare*: as many loops as actors over the same decoded batches, each in a "
            "process of its own. *Pipeline*: reading, decoding in a child process, encoding at the actors and "
            "writing shards, from the first unit to the last; *overall*: from the request to the manifest. *Ratio*: "
            "of the pipeline to the bare loop, or to the pipeline with one actor. *Bare ratio*: of the bare loops "
            "to one of them, which is what this machine gives. Every process has one thread."
        ),
        table(
            ["encoder", "actors", "bare", "pipeline", "overall", "ratio", "goal", "bare ratio"],
            [
                [
                    one["encoder"],
                    one["actors"],
                    f"{one['bare_rows_per_second']:.1f}",
                    f"{one['rows_per_second']:.1f}",
                    f"{one['rows_per_second_overall']:.1f}",
                    f"{one['ratio']:.2f}",
                    f"≥ {one['goal']}",
                    f"{one['bare_ratio']:.2f}",
                ]
                for one in document["encoding"]
            ],
        ),
    ]
    if features := document["features"]:
        parts += _features(features)
    return "\n\n".join(parts) + "\n"


def _features(features: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "## Files of features",
        (
            "MiB a second, medians of alternating rounds in one process, files in the page cache. *Prepared*: "
            "from the request to the manifest; every byte is copied and digested, every column decoded in a "
            "child process, every value and id checked. *Scan*: pyarrow's `dataset.to_batches()` of the same "
            "files, with its default threads and read-ahead: every column is decoded, and nothing else. Both "
            "may use all cores."
        ),
        table(
            ["files", "MiB", "prepared", "scan", "ratio", "goal"],
            [
                [
                    one["kind"],
                    f"{one['mib']:.0f}",
                    f"{one['prepared_mib_per_second']:.0f}",
                    f"{one['pyarrow_mib_per_second']:.0f}",
                    f"{one['ratio']:.2f}",
                    f"≥ {one['goal']}",
                ]
                for one in features
            ],
        ),
    ]
