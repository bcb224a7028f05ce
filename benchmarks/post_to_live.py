"""How long does a dataset take from POST to live, and where does the time go?

`python -m benchmarks.post_to_live` starts its own stack, as `cmcl up` does, and posts the datasets of a stream, under
both policies, while nothing else runs. Beside each, the same dataset is learned in this process with all cores. Then raw
pairs whose rows are encoded already, the bytes of the store, and one more version with a simulated history.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.folder import InvalidStream
from benchmarks.folder import read_stream as read_datasets
from benchmarks.live.growth import VersionCost, measure_growth
from benchmarks.live.memory import memory_of
from benchmarks.live.stack import Ask, BareLearning, Learner, Live, learn_stream, stored_bytes
from benchmarks.report import machine
from cmcl.client import Client
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.demo.run import Stream, read_stream
from cmcl.memory import keep_freed_memory
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports

_EXAMPLES = Path(__file__).parents[1] / "examples"
_POLICIES = ("improve", "preserve")
# Raw pairs, and the encoders of their modalities.
RAW = _EXAMPLES / "raw/emoji.tar"
RAW_PAIR = ModalityPair(first="image", second="text")
RAW_ENCODERS = {"image": "efficientnet-lite0", "text": "minilm"}
_ASK: Ask = ("text", ["a red fruit"])
# How many datasets are behind one more version.
_HISTORIES = (15, 1000)
# After the last dataset. Encoders that prepare end after 120 s without one.
_REST_SECONDS = 130.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # Bare learning has the cores and the allocator of a rank.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep_freed_memory()
    try:
        document = measured(options)
    except (InvalidStream, FileNotFoundError) as error:
        parser.error(str(error))
    publish(options, "post-to-live", markdown(document), document)
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    stream = read_stream(options.stream)
    with tempfile.TemporaryDirectory(prefix="cmcl-live-") as folder:
        stack = LocalStack(
            Path(folder),
            Ports.free(),
            options.ranks,
            allowed_prefixes=(stream.folder.as_uri(), RAW.parent.as_uri()),
            encoders=() if options.quick else raw_encoders(),
            plugins=_EXAMPLES / "encoders",
            report=log_progress,
        )
        began = time.perf_counter()
        with stack, Client(stack.service_url, stack.embeddings_url) as client:
            ready, store = time.perf_counter() - began, stack.folder / "store"
            policies = {each: measure_policy(store, client, stream, each) for each in _POLICIES}
            stored = stored_bytes(store)
            preparing = policies["improve"]["phases"]["preparing"]
            raw = None if options.quick else _encoded_again(store, client, preparing)
            time.sleep(_REST_SECONDS)
            memory = memory_of(stack)
    growth = [] if options.quick else measure_growth(_HISTORIES)
    about = {
        "ready_s": round(ready, 2),
        "store_bytes": stored,
        "rest_mib": round(sum(each["mib"] for each in memory.values())),
        "memory": memory,
        "machine": machine(),
    }
    return document_of(policies, raw, growth) | about | {"before": _before(options.before)}


def _before(path: Path | None) -> dict[str, Any] | None:
    """The document of an earlier run, without that of one before it."""
    if path is None:
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name != "before"}


def document_of(
    policies: Mapping[str, Mapping[str, Any]],
    raw: Mapping[str, Any] | None,
    growth: Sequence[VersionCost],
) -> dict[str, Any]:
    """Put together what was measured. The first dataset of the first policy was the first one of the stack."""
    first, *_ = policies.values()
    return {
        "policies": dict(policies),
        "cold_first_s": first["datasets"][0]["seconds"],
        "encoded_again_s": None if raw is None else raw["beyond_features_s"],
        "version_bytes": {
            policy: [each["written_bytes"] for each in found["datasets"]]
            for policy, found in policies.items()
        },
        "raw": raw,
        "growth": list(growth),
        "growth_1000_over_15": round(growth[-1]["seconds"] / growth[0]["seconds"], 2)
        if growth
        else None,
    }


def measure_policy(store: Path, client: Client, stream: Stream, policy: str) -> dict[str, Any]:
    """Learn the stream with a model of this policy. Medians are over the datasets after the first."""
    client.create_model(policy, {"modalities": stream.modalities, "policy": policy})
    datasets = read_datasets(stream.folder)
    spec = ModelSpec.model_validate({"modalities": datasets.widths, "policy": policy})
    bare = BareLearning(spec, datasets.datasets)
    pairs = list(learn_stream(Learner(store, client, policy), stream, bare.learn))
    whole, alone = (
        round(median(each), 3)
        for each in ([live.seconds for live, _ in pairs[1:]], [bare for _, bare in pairs[1:]])
    )
    return {
        "median_s": whole,
        "bare_s": alone,
        "ratio": round(whole / alone, 2),
        "phases": _phases([live for live, _ in pairs[1:]]),
        "datasets": [{**_rounded(live), "bare_s": round(seconds, 2)} for live, seconds in pairs],
    }


def _encoded_again(store: Path, client: Client, preparing: float) -> dict[str, Any]:
    """Post raw pairs to one model and then to another, whose rows are encoded already.

    `preparing`: seconds that the preparation of features takes; `beyond_features_s`: how much more that of the second
    post takes.
    """
    found = []
    for name in ("raw", "raw-again"):
        modalities = {each: {"encoder": encoder} for each, encoder in RAW_ENCODERS.items()}
        client.create_model(name, {"modalities": modalities})
        learner = Learner(store, client, name)
        live = learner.learn("emoji", RAW_PAIR, [RAW], _ASK, evaluation_share=0.15)
        log_progress(f"{name}: live after {live.seconds:.1f} s")
        found.append(live)
    first, again = found
    return {
        "first": _rounded(first),
        "again": _rounded(again),
        "beyond_features_s": round(again.phases["preparing"] - preparing, 2),
    }


def raw_encoders() -> tuple[EncoderSpec, ...]:
    declared = json.loads((_EXAMPLES / "encoders/encoders.json").read_bytes())
    found = (EncoderSpec.model_validate(each) for each in declared)
    return tuple(each for each in found if each.name in RAW_ENCODERS.values())


def _phases(lives: Sequence[Live]) -> dict[str, float]:
    """The median of each phase."""
    names = dict.fromkeys(name for live in lives for name in live.phases)
    return {name: round(median(live.phases.get(name, 0.0) for live in lives), 3) for name in names}


def _rounded(live: Live) -> dict[str, Any]:
    phases = {name: round(seconds, 3) for name, seconds in live.phases.items()}
    return {**asdict(live), "seconds": round(live.seconds, 2), "phases": phases}


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page, with what was measured before beside it."""
    runs = {"": document, **({"before": document["before"]} if document.get("before") else {})}
    policies = {
        f"{policy} {when}".strip(): found
        for policy in document["policies"]
        for when, run in runs.items()
        if (found := run["policies"].get(policy))
    }
    phases = list(dict.fromkeys(name for each in policies.values() for name in each["phases"]))
    parts = [
        "# From POST to live",
        "## Question",
        (__doc__ or "").partition("\n")[0],
        "## Machine",
        listed({name: value for name, value in document["machine"].items() if value is not None}),
        "## Result",
        (
            "Seconds from the POST of a dataset of features to the first answer of its version, medians over the datasets "
            "after the first. *bare*: the same datasets learned in one process with all cores, in the same run."
        ),
        table(
            ["policy", "POST to live", "bare", "ratio"],
            [
                (name, f"{each['median_s']:.1f}", f"{each['bare_s']:.1f}", f"{each['ratio']:.2f}")
                for name, each in policies.items()
            ],
        ),
        table(
            ["", *(when or "now" for when in runs)],
            [
                (words, *(_written(run.get(name), form) for run in runs.values()))
                for words, name, form in _FIGURES
            ],
        ),
        "## Phases",
        (
            "Medians in seconds, as the product records them "
            "([events](../events.md#where-the-time-of-a-job-went)). *post*: the request. *pointer*: from the stored "
            "version to `live.json`. *answer*: from there to the first answer of the endpoint."
        ),
        table(
            ["phase", *policies],
            [
                (name, *(f"{each['phases'].get(name, 0.0):.2f}" for each in policies.values()))
                for name in phases
            ],
        ),
        "## Datasets",
        table(
            ["policy", "dataset", "POST to live", "bare", "MB written"],
            [
                (
                    name,
                    each["dataset"],
                    f"{each['seconds']:.1f}",
                    f"{each['bare_s']:.1f}",
                    f"{each['written_bytes'] / 1e6:.0f}",
                )
                for name, found in policies.items()
                for each in found["datasets"]
            ],
        ),
        *_growth(document["growth"]),
        "## Memory at rest",
        f"By process, {_REST_SECONDS:.0f} s after the last dataset (PSS: a page that several share counts in parts):",
        table(
            ["process", "number", "MiB"],
            [
                (f"`{name}`", each["processes"], f"{each['mib']:.0f}")
                for name, each in document["memory"].items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _growth(versions: Sequence[VersionCost]) -> list[str]:
    if not versions:
        return []
    phases = list(dict.fromkeys(name for each in versions for name in each["phases"]))
    return [
        "## With a long history",
        (
            "Seconds of one more version under *improve*, a whole attempt in one process with all cores. The datasets behind "
            "it are simulated, of the fifteen pairs of six modalities in turn. *measured*: how many of them it certified, "
            "with their recall."
        ),
        table(
            ["datasets behind it", "measured", "seconds", *phases],
            [
                (
                    each["datasets"],
                    each["measured"],
                    f"{each['seconds']:.1f}",
                    *(f"{each['phases'].get(name, 0.0):.2f}" for name in phases),
                )
                for each in versions
            ],
        ),
    ]


# What is said of each run: words, field, and form.
_FIGURES = (
    ("the stack is ready, s", "ready_s", ".0f"),
    ("its first dataset, POST to live, s", "cold_first_s", ".1f"),
    ("raw pairs that are encoded already, beyond features, s", "encoded_again_s", ".1f"),
    ("one more version after 1,000 datasets / after 15", "growth_1000_over_15", ".2f"),
    ("bytes of the store after both streams", "store_bytes", ","),
    ("memory at rest, MiB", "rest_mib", ","),
)


def _written(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.post_to_live", description=__doc__)
    parser.add_argument("--stream", type=Path, default=_EXAMPLES / "stream", metavar="DIR")
    parser.add_argument("--ranks", type=count, default=2, help="(default: 2)")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="document of an earlier run, for the page"
    )
    parser.add_argument("--quick", action="store_true", help="no raw pairs, no long history")
    add_out(parser)
    return parser


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        # As in the ranks of a stack, and set before torch is loaded.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "benchmarks.post_to_live", *sys.argv[1:]]
        os.execve(sys.executable, command, environment)  # noqa: S606
    sys.exit(main())
