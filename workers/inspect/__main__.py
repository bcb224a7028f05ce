"""`python -m workers.inspect QUESTION`: questions about a stored model.

Prints a table, or one JSON document with --json. Status 0: answered; 2: cannot be answered, with one
line on stderr; 3 (preflight): the dataset would be refused.

The service runs pre-flights as well. It passes keys of the store: of a document with the shards, which
would be too long for a command line, and for the answer.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from cmcl.contract.errors import InvalidVersion, WorkerError
from cmcl.contract.modality import ModalityPair
from cmcl.contract.preflight import AskedShard, AskedShards, Outlook, PreflightAnswer
from workers.inspect.capacity import model_capacity
from workers.inspect.compare import compare
from workers.inspect.migrate import MigrationQuestion, migrate
from workers.inspect.preflight import DatasetOutlook, dataset_outlook
from workers.inspect.show import Answer, as_json, as_text, finite
from workers.inspect.versions import Unanswerable
from workers.storage.object_store import ObjectStore
from workers.storage.uris import open_store

_CANNOT, _REFUSED = 2, 3


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_CANNOT, f"workers.inspect: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer a question and return the exit status."""
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
    """Run a pre-flight; also write its answer to the store if --into is given."""
    try:
        shards, allowed = _shards(store, options)
        outlook = dataset_outlook(
            store, options.model, options.version, options.pair, shards, allowed
        )
    except (Unanswerable, WorkerError, OSError) as error:
        if options.into is not None:
            _write_error(store, options.into, error)
        raise
    if options.into is not None:
        _write_outlook(store, options.into, outlook)
    return outlook


def _shards(
    store: ObjectStore, options: argparse.Namespace
) -> tuple[tuple[AskedShard, ...], tuple[str, ...] | None]:
    """The shards and the prefixes that they must not leave: none for a user of this command."""
    if options.shards_in is None:
        return tuple(AskedShard(uri=uri) for uri in options.shards), None
    asked = _read_request(store, options.shards_in)
    return asked.shards, asked.allowed_prefixes


def _read_request(store: ObjectStore, key: str) -> AskedShards:
    """Read what the service wrote. Raises ObjectNotFound, InvalidVersion, StorageUnavailable."""
    try:
        return AskedShards.model_validate_json(store.read(key))
    except ValidationError as error:
        raise InvalidVersion(f"{key} cannot be read: {error}") from error


def _write_outlook(store: ObjectStore, key: str, outlook: DatasetOutlook) -> None:
    """Write the answer in one object, so that readers see all of it or nothing."""
    answer = PreflightAnswer(outlook=Outlook.model_validate(finite(asdict(outlook))))
    _write_answer(store, key, answer)


def _write_error(store: ObjectStore, key: str, error: Exception) -> None:
    """Write why there is no answer. Another machine may have the disk space that is missing here."""
    can_help = (
        error.retry_can_help if isinstance(error, WorkerError) else isinstance(error, OSError)
    )
    _write_answer(store, key, PreflightAnswer(error=str(error), retry_can_help=can_help))


def _write_answer(store: ObjectStore, key: str, answer: PreflightAnswer) -> None:
    store.put(key, answer.model_dump_json().encode())


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
    """Turn a local path into an address; leave addresses unchanged."""
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
