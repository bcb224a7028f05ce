"""Shards with pairs that do not belong together are named, with about the share of such pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.folder import read_stream
from benchmarks.shards import _page, measure
from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import DatasetReport
from cmcl.storage.local import LocalStore
from tests.fakes.feature_shards import fetch
from tests.unit.benchmarks.tiny_stream import NAMES, features, write_part, write_stream
from workers.model.heads import PairedRows, content_keys
from workers.prepare.dry_run import dataset_outlook
from workers.prepare.mismatches import mismatches

SHARDS, ROWS = 8, 60


def rows_with(shuffled: dict[int, float], rows: int = ROWS) -> tuple[PairedRows, torch.Tensor]:
    """Rows of all shards; in some of them a share of the pairs is shuffled."""
    first, second = features("x_vt", 5, SHARDS * rows)
    for shard, share in shuffled.items():
        own = shard * rows + np.random.default_rng(shard).permutation(rows)[: int(share * rows)]
        second[own] = second[np.roll(own, 1)]
    keys = (torch.from_numpy(content_keys(side)) for side in (first, second))
    sides = (torch.from_numpy(side) for side in (first, second))
    return PairedRows(*sides, *keys), torch.arange(SHARDS).repeat_interleave(rows)


@pytest.mark.parametrize(
    "shuffled", [{}, {3: 0.3}, {3: 0.5}, {1: 0.5, 6: 0.9}, {0: 0.4, 1: 0.4, 2: 0.4}]
)
def test_bad_shards_are_named_and_no_others(shuffled: dict[int, float]) -> None:
    """Two bad ones do not hide each other, whether one solution judges both or not."""
    found = mismatches(*rows_with(shuffled))
    assert {shard for shard, each in found.items() if each.is_bad} == shuffled.keys()
    for shard in range(SHARDS):
        # A pair that is shuffled within its class still agrees in part.
        assert found[shard].share == pytest.approx(shuffled.get(shard, 0), abs=0.13)
        assert (found[shard].share > found[shard].limit) == (shard in shuffled)


def test_a_shard_is_judged_by_heads_that_have_not_seen_it() -> None:
    """Heads of wide features fit the noise of their own rows."""
    rows, shard_N = rows_with({3: 1.0})
    random = torch.Generator().manual_seed(0)
    first_NI, second_NJ = (
        torch.cat([side, torch.randn(len(rows), 120, generator=random)], 1)
        for side in (rows.first_NI, rows.second_NJ)
    )
    found = mismatches(replace(rows, first_NI=first_NI, second_NJ=second_NJ), shard_N)[3]
    assert found.is_bad
    assert found.share == pytest.approx(1.0, abs=0.15)


def test_a_shard_is_judged_whatever_its_place_and_number() -> None:
    rows, shard_N = rows_with({3: 0.5})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    there = mismatches(rows.at(order), 10 * shard_N[order])
    here = mismatches(rows, shard_N)
    assert {shard: each.is_bad for shard, each in there.items()} == {
        10 * shard: each.is_bad for shard, each in here.items()
    }
    assert there[30].share == pytest.approx(here[3].share, abs=0.02)


def test_nothing_is_said_where_nothing_can_be() -> None:
    rows, shard_N = rows_with({3: 0.5})
    assert not mismatches(rows, shard_N // 4), "two shards"
    assert not mismatches(rows.at(slice(0, 100)), shard_N[:100] * 0 + torch.arange(100) % 5), "few"
    # Where no pair belongs together, no shard is worse than the others.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    strange = replace(rows, second_NJ=rows.second_NJ[order])
    assert not any(each.is_bad for each in mismatches(strange, shard_N).values())


def test_a_dry_run_names_the_file_and_its_share(tmp_path: Path) -> None:
    rows, _ = rows_with({3: 0.5})
    shards = []
    for number in range(SHARDS):
        own = slice(number * ROWS, (number + 1) * ROWS)
        path = tmp_path / f"{number}.parquet"
        write_part(path, (rows.first_NI[own].numpy(), rows.second_NJ[own].numpy()))
        shards.append(fetch(ShardRef(uri=path.as_uri()), path.with_suffix(".fetched")))
    spec = ModelSpec.model_validate({"policy": "improve", "modalities": {"v": 12, "t": 8}})
    pair = ModalityPair(first="v", second="t")
    report = dataset_outlook(LocalStore(tmp_path / "store"), "m", 0, spec, pair, shards)
    (bad,) = report.bad_shards
    assert bad.file == shards[3].uri
    assert (bad.part, bad.rows) == (None, ROWS)
    assert bad.mismatched == pytest.approx(0.5, abs=0.13)
    assert bad.limit < bad.mismatched
    assert any(
        words.startswith(f"{bad.file}: about {100 * bad.mismatched:.0f} %")
        for words in report.advice
    )
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report


def test_the_benchmark_measures_planted_shards(tmp_path: Path) -> None:
    dataset = read_stream(write_stream(tmp_path / "tiny", NAMES[:1])).datasets[0]
    dataset = replace(dataset, training=rows_with({})[0])
    found = measure(dataset, ROWS)
    assert found["clean"] == {"named": 0, "shards": SHARDS}
    assert (found["0.5"]["auroc"], found["0.5"]["named"], found["0.5"]["bad"]) == (1.0, 2, 2)
    page = _page({"cases": [{"stream": "tiny", "rows": ROWS, **found}], "machine": {}})
    assert "| tiny | 60 | 50 % | 1.000 |" in page
