"""Parts of a file: the windows that cover a recording, each with its seconds."""

from typing import Generic, NamedTuple, TypeVar

ItemT = TypeVar("ItemT")


class Part(NamedTuple, Generic[ItemT]):
    """One window of a recording, or a whole file.

    `of`: the decoded item, later the one for a pass, and at last its feature. `start`, `end`: of a window, in seconds.
    `thumbnail`: a JPEG, or empty.
    """

    of: ItemT
    start: float | None = None
    end: float | None = None
    thumbnail: bytes = b""
