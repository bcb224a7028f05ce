"""The process that validates one dataset: `python -m service.control.validation.child PARENT`.

An `Errand` on standard input, lines of `Word` on standard output. It loads neither the web server
nor the database: a small dataset must not wait for them.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

from service.control.validation.task import Errand, Word
from service.control.validation.verify import verify
from workers.storage.process_limits import bound, end_with
from workers.storage.uris import open_store


def main(parent: int) -> int:
    """Exit status 0 if it has said how it ended."""
    end_with(parent)
    answers = _answers()
    errand = Errand.model_validate_json(sys.stdin.buffer.read())
    bound(errand.memory, errand.seconds)
    _say(answers, _last_word(errand, answers))
    return 0


def _answers() -> BinaryIO:
    """Standard output, for our words alone: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return answers


def _last_word(errand: Errand, answers: BinaryIO) -> Word:
    def tell(uri: str) -> None:
        _say(answers, Word(reading=uri))

    try:
        manifest = verify(open_store(errand.store), errand.task, Path(errand.folder), tell)
    except Exception as error:  # noqa: BLE001
        # Whoever waits decides what it means; a mistake of ours can be found in its log.
        traceback.print_exc()
        return Word(error=type(error).__name__, words=str(error))
    return Word(manifest=manifest)


def _say(answers: BinaryIO, word: Word) -> None:
    answers.write(word.model_dump_json(exclude_none=True).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
