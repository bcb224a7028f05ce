"""`python -m workers.inspect QUESTION`: what a stored model answers about itself.

Prints a table, with --json one JSON document. Status 0: answered; 2: it cannot be answered, and one
line on stderr says why; 3 (preflight): the dataset would be refused.

The service asks for pre-flights as well: it names keys of the store for what is long (the shards)
and for the answer.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from cmcl.contract.errors import WorkerError
from cmcl.contract.modality import ModalityPair
from cmcl.contract.preflight import AskedShard
from workers.inspect.capacity import model_capacity
from workers.inspect.compare import compare
from workers.inspect.delivery import asked_shards, leave_error, leave_outlook
from workers.inspect.migrate import MigrationQuestion, migrate
from workers.inspect.preflight import DatasetOutlook, dataset_outlook
from workers.inspect.show import Answer, as_json, as_text
from workers.inspect.versions import Unanswerable
from workers.storage.port import ObjectStore
from workers.storage.uris import open_store

_CANNOT, _REFUSED = 2, 3


class _Parser(argparse.ArgumentParser):
    """Mistakes are answered in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_CANNOT, f"workers.inspect: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, ask, print."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        answer = _answer(options)
    except (Unanswerable, WorkerError, OSError) as error:
        parser.error(str(error))
    print(as_json(answer) if options.json else as_text(answer), flush=True)
    refused = isinstance(answer, DatasetOutlook) and answer.refused
    return _REFUSED if refused else 0


def _answer(options: argparse.Namespace) -> Answer:
    store, model = open_store(options.store), options.model
    match options.question:
        case "capacity":
            return model_capacity(store, model, options.version)
        case "preflight":
            return _outlook(store, options)
        case "compare":
            return compare(store, model, options.old, options.new)
        case _:
            question = MigrationQuestion(
                model, options.old, options.new, options.modality, options.most_error
            )
            return migrate(store, question, options.vectors, options.out)


def _outlook(store: ObjectStore, options: argparse.Namespace) -> DatasetOutlook:
    """To the caller, and into the store if somebody waits for it there."""
    try:
        shards, allowed = _shards(store, options)
        outlook = dataset_outlook(
            store, options.model, options.version, options.pair, shards, allowed
        )
    except (Unanswerable, WorkerError, OSError) as error:
        if options.into is not None:
            leave_error(store, options.into, error)
        raise
    if options.into is not None:
        leave_outlook(store, options.into, outlook)
    return outlook


def _shards(
    store: ObjectStore, options: argparse.Namespace
) -> tuple[tuple[AskedShard, ...], tuple[str, ...] | None]:
    """Whoever types addresses may read them; whoever asks by the service, what it permits."""
    if options.shards_in is None:
        return tuple(AskedShard(uri=uri) for uri in options.shards), None
    asked = asked_shards(store, options.shards_in)
    return asked.shards, asked.allowed_prefixes


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m workers.inspect", description=__doc__)
    questions = parser.add_subparsers(dest="question", required=True, metavar="QUESTION")
    _capacity(_question(questions, "capacity", "how full the heads are"))
    _preflight(_question(questions, "preflight", "what a dataset would meet"))
    _compare(_question(questions, "compare", "do stored vectors meet another version's queries"))
    _migrate(_question(questions, "migrate", "turn stored vectors into another version's"))
    return parser


def _question(
    questions: "argparse._SubParsersAction[_Parser]", name: str, words: str
) -> argparse.ArgumentParser:
    parser = questions.add_parser(name, help=words, description=words)
    parser.add_argument("--store", type=_address, required=True, help="its folder, or its address")
    parser.add_argument("--model", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser


def _capacity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=_number, required=True)


def _preflight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=_number, required=True)
    parser.add_argument("--pair", type=_pair, required=True, metavar="A,B")
    shards = parser.add_mutually_exclusive_group(required=True)
    shards.add_argument("--shards", type=_address, nargs="+", metavar="FILE", help="or addresses")
    shards.add_argument("--shards-in", metavar="KEY", help="a document in the store names them")
    parser.add_argument("--into", metavar="KEY", help="leave the answer in the store as well")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="old", type=_number, required=True, help="stored by")
    parser.add_argument("--to", dest="new", type=_number, required=True, help="queries by")


def _migrate(parser: argparse.ArgumentParser) -> None:
    _compare(parser)
    parser.add_argument("--modality", required=True)
    parser.add_argument("--vectors", type=Path, required=True, help=".npy, float32, rows × width")
    parser.add_argument("--out", type=Path, required=True, help=".npy to write")
    parser.add_argument(
        "--most-error",
        type=_share,
        default=0.5,
        help="predicted relative error above which nothing is written (default: 0.5)",
    )


def _address(text: str) -> str:
    """A path of this machine as an address; addresses as they are."""
    return text if "://" in text else Path(text).absolute().as_uri()


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no version: they are numbered from 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return share


def _pair(text: str) -> ModalityPair:
    names = text.split(",")
    try:
        if len(names) == 2:
            return ModalityPair(first=names[0].strip(), second=names[1].strip())
    except ValidationError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no pair: write two different modalities, A,B")


if __name__ == "__main__":
    sys.exit(main())
