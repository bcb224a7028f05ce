"""Which callers a candidate answers: always the same ones, in every replica, without a list."""

import hashlib


def answered_by_candidate(model: str, revision: int, key: str, share: float) -> bool:
    """Whether the caller with this routing key belongs to the share that tries the candidate.

    `revision`: of the pointer that began the trial, so that another trial meets other callers. Who
    is in stays in when the share grows.
    """
    digest = hashlib.blake2b(f"{model}/{revision}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64
