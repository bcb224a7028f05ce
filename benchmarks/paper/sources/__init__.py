"""Recipes of the seven sources, in the order of the steps."""

from collections.abc import Mapping

from benchmarks.paper.sources import clotho, esc50, llvip, nyudv2, tvl, ucf101, vggsound
from benchmarks.paper.sources.source import Source

SOURCES: Mapping[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (ucf101, esc50, nyudv2, clotho, vggsound, tvl, llvip)
}
