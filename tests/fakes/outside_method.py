"""A method in a package outside the tree, as another project would ship it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MODULE = "one_sided_learning"
NAME = "one-sided"
PLACE = f"{MODULE}:OneSided"
_SOURCE = '''
"""Trains the second head of a pair and leaves the first as it is."""

from dataclasses import replace

import torch

from workers.methods.method import Method


class OneSided(Method):
    def update_spaces(self, context):
        spaces = dict(super().update_spaces(context))
        first = context.pair.first
        spaces[first] = replace(spaces[first], free_EI=torch.zeros_like(spaces[first].free_EI))
        return spaces


not_a_method = dict
'''


@contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """Put the package and its entry point on the path; yield the file of its module."""
    source = folder / f"{MODULE}.py"
    source.write_text(_SOURCE)
    metadata = folder / f"{MODULE}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[cmcl.methods]\n{NAME} = {PLACE}\nvanilla = {PLACE}\nbroken = {MODULE}:not_a_method\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield source
    sys.modules.pop(MODULE, None)
