"""Argument types that the benchmarks share."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}\n")


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Parse comma-separated counts. Return them without duplicates, in rising order."""
    return tuple(sorted({count(part.strip()) for part in text.split(",")}))
