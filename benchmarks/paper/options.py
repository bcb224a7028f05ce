"""Options of the command, and what they are by default."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.command_line import OneLineParser, count
from benchmarks.paper.cells import paper_methods
from benchmarks.paper.families import Given, known_encoders
from benchmarks.paper.protocol import FAMILIES
from benchmarks.paper.sources import SOURCES
from cmcl.contract.errors import UnknownMethod
from workers.methods.registry import method_class

_WORK = Path(".cmcl/paper")
# A tiny run: heads of this width, few updates, no lift (its random features cost more than the rest), and everything
# else as in a real one.
TINY_WIDTH, _TINY_SEEDS, _TINY_EPOCHS, _TINY_BATCH = 32, 2, 2, 8
_SEEDS = 10


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser."""
    made = OneLineParser(prog="python -m benchmarks.paper", description=description)
    made.add_argument("--root", type=Path, help="folder with the sources, as downloaded")
    made.add_argument(
        "--encoder",
        type=_names(known_encoders()),
        metavar="A,B,...",
        help=f"{', '.join(known_encoders())} (default: imagebind)",
    )
    made.add_argument(
        "--methods",
        type=_methods,
        metavar="A,B,...",
        help="names, or module:Class for your own method (default: all known names)",
    )
    made.add_argument("--seeds", type=count, help=f"number of seeds, from 0 (default: {_SEEDS})")
    made.add_argument(
        "--sources",
        type=_names(tuple(SOURCES)),
        default=tuple(SOURCES),
        metavar="A,B,...",
        help=f"some of {', '.join(SOURCES)} (default: all; the table needs all)",
    )
    made.add_argument(
        "--preset",
        choices=("product", "paper"),
        default="product",
        help="settings of training: the product's, or the published ones (default: product)",
    )
    made.add_argument("--batch-size", type=count, help="in place of the preset's")
    made.add_argument("--epochs", type=count, help="in place of the preset's")
    made.add_argument(
        "--joint-epochs", type=count, default=20, help="of joint training (default: 20)"
    )
    _add_encoding(made)
    _add_places(made)
    return made


def _add_encoding(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--caches", type=Path, help="folder with the authors' HDF5 caches, in place of --root"
    )
    made.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="ENCODER=PATH",
        help="file or folder with the weights of an encoder; repeatable",
    )
    made.add_argument(
        "--accept-licence",
        type=_names(tuple(FAMILIES)),
        default=(),
        metavar="A,B,...",
        help="encoders whose licence you accept; imagebind and unibind are for non-commercial use only",
    )
    made.add_argument("--device", default="cpu", help="of the encoders: cpu, cuda (default: cpu)")
    made.add_argument(
        "--partial",
        action="store_true",
        help="run although a source has fewer rows than its release; the table is then not comparable",
    )
    made.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="largest share of rows of a source that may be unreadable (default: 0.01)",
    )


def _add_places(made: argparse.ArgumentParser) -> None:
    made.add_argument("--work", type=Path, default=_WORK, help=f"kept results (default: {_WORK})")
    made.add_argument("--out", type=Path, help="for page and pictures (default: WORK/results)")
    made.add_argument("--check", action="store_true", help="only check the sources")
    made.add_argument(
        "--tiny",
        action="store_true",
        help="make small folders of the same layouts, and run on them",
    )
    made.add_argument(
        "--synthetic",
        type=_share,
        metavar="SHARE",
        help="random features with this share of the paper's rows, other ones for each seed",
    )
    made.add_argument(
        "--width", type=count, help="of synthetic features and embeddings (default: the encoder's)"
    )
    made.add_argument("--json", action="store_true", help="last line of stdout: one document")
    cores = len(os.sched_getaffinity(0))
    made.add_argument("--jobs", type=count, default=cores, help="processes (default: cores)")


def resolved(options: argparse.Namespace, made: argparse.ArgumentParser) -> argparse.Namespace:
    """Fill in what was not given. Ends the program with one line for what does not fit together."""
    options.methods = options.methods or paper_methods()
    if options.tiny:
        fakes = tuple(name for name in known_encoders() if name not in FAMILIES)
        options.root = options.root or options.work / "tiny"
        options.partial = True
        options.encoder = options.encoder or fakes
        options.seeds = options.seeds or _TINY_SEEDS
        options.epochs = options.epochs or _TINY_EPOCHS
        options.batch_size = options.batch_size or _TINY_BATCH
        options.joint_epochs = _TINY_EPOCHS
        if real := [name for name in options.encoder if name in FAMILIES]:
            made.error(f"--tiny runs with stand-ins: use fake-{real[0]}")
    options.encoder = options.encoder or ("imagebind",)
    options.seeds = options.seeds or _SEEDS
    if options.synthetic is None and options.root is None and options.caches is None:
        made.error(
            "--root is missing: the folder with the sources (or --caches, --tiny, --synthetic)"
        )
    if options.width is not None and options.synthetic is None:
        made.error("--width is that of synthetic features: it needs --synthetic")
    options.weights = _weights(options.weights, made)
    return options


def given_of(options: argparse.Namespace, encoder: str) -> Given:
    """What was said of a real encoder."""
    return Given(options.weights.get(encoder), encoder in options.accept_licence, options.device)


def _weights(texts: list[str], made: argparse.ArgumentParser) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if name not in FAMILIES or not equals:
            made.error(
                f"--weights {text!r} is not ENCODER=PATH; encoders are {', '.join(FAMILIES)}"
            )
        found[name] = Path(path)
    return found


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and at most 1")
    return share


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown name {name!r}; known are {', '.join(known)}"
                )
        return chosen

    return parse


def _methods(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if ":" in name:
            try:
                method_class(name)
            except UnknownMethod as error:
                raise argparse.ArgumentTypeError(str(error)) from error
        elif name not in paper_methods():
            raise argparse.ArgumentTypeError(
                f"unknown method {name!r}; known are {', '.join(paper_methods())}, and module:Class"
            )
    return chosen
