"""`python -m workers.inspect QUESTION`: what a stored model answers about itself.

Prints a table, with --json one JSON document. Status 0: answered; 2: it cannot be answered, and one
line on stderr says why; 3 (preflight): the dataset would be refused.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from workers.contract.errors import WorkerError
from workers.contract.modality import ModalityPair
from workers.inspect.capacity import model_capacity
from workers.inspect.compare import compare
from workers.inspect.migrate import MigrationQuestion, migrate
from workers.inspect.preflight import DatasetOutlook, dataset_outlook
from workers.inspect.show import Answer, as_json, as_text
from workers.inspect.versions import Unanswerable
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
            return dataset_outlook(store, model, options.version, options.pair, options.shards)
        case "compare":
            return compare(store, model, options.old, options.new)
        case _:
            question = MigrationQuestion(
                model, options.old, options.new, options.modality, options.most_error
            )
            return migrate(store, question, options.vectors, options.out)


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
    parser.add_argument("--store", required=True, help="URI of the object store")
    parser.add_argument("--model", required=True)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser


def _capacity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=_number, required=True)


def _preflight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=_number, required=True)
    parser.add_argument("--pair", type=_pair, required=True, metavar="A,B")
    parser.add_argument("--shards", nargs="+", required=True, metavar="URI")


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
