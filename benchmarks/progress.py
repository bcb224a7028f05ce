"""What a benchmark says while it goes on: stdout is for its result."""

import sys


def say(words: str) -> None:
    """A line on stderr, at once."""
    print(words, file=sys.stderr, flush=True)
