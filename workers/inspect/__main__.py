"""`python -m workers.inspect QUESTION`: questions about a stored model, or about exported ones.

Prints a table, or one JSON document with --json. Status 0: answered; 2: cannot be answered, with one
line on stderr; 3 (preflight): the dataset would be refused.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import WorkerError
from cmcl.contract.modality import ModalityPair
from workers.inspect.capacity import model_capacity
from workers.inspect.compare import compare
from workers.inspect.merge import merge_exports
from workers.inspect.migrate import MigrationQuestion, migrate
from workers.inspect.preflight import DatasetOutlook, dataset_outlook
from workers.inspect.show import Answer, as_json, as_text
from workers.inspect.versions import Unanswerable
from workers.storage.uris import open_store

_CANNOT, _REFUSED = 2, 3
_MERGE = "merge two versions that were exported with moments into a new export"


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
    if options.question == "merge":
        return merge_exports(options.ours, options.theirs, options.out)
    store, model = open_store(options.store), options.model
    match options.question:
        case "capacity":
            return model_capacity(store, model, options.version)
        case "preflight":
            shards = tuple(ShardRef(uri=uri) for uri in options.shards)
            return dataset_outlook(store, model, options.version, options.pair, shards)
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
    _merge(questions.add_parser("merge", help=_MERGE, description=_MERGE))
    return parser


def _question(
    questions: "argparse._SubParsersAction[_Parser]", name: str, words: str
) -> argparse.ArgumentParser:
    parser = questions.add_parser(name, help=words, description=words)
    parser.add_argument("--store", type=_address, required=True, help="its folder, or its address")
    parser.add_argument("--model", required=True)
    _json(parser)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ours", type=Path, help="folder of an export; the scores follow its heads")
    parser.add_argument("theirs", type=Path, help="folder of the other one")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    _json(parser)


def _capacity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=_number, required=True)


def _preflight(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=_number, required=True)
    parser.add_argument("--pair", type=_pair, required=True, metavar="A,B")
    parser.add_argument(
        "--shards", type=_address, nargs="+", required=True, metavar="FILE", help="or addresses"
    )


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
