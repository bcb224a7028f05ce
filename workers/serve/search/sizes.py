"""When to merge what grows by small pieces, on the disk and in memory alike."""

from collections.abc import Sequence


def first_to_merge(sizes: Sequence[int]) -> int:
    """Where the last pieces begin that are to be merged: all from here on.

    The first piece that is no larger than all after it together. So a row is moved a few times in
    all, the logarithm of the size, and as many pieces remain at most.
    """
    for index, size in enumerate(sizes):
        if size <= sum(sizes[index + 1 :]):
            return index
    return max(len(sizes) - 2, 0)
