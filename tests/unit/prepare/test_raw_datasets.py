"""Datasets of raw rows: encoded once, checked row by row, and the same after any crash."""

import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.prepare import PrepareReport
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from cmcl.storage.local import LocalStore
from tests.fakes.encoder_cases import features
from tests.fakes.preparation import Ground, InlineCluster
from workers.encoders.port import EncoderUnusable, load_encoder
from workers.encoders.synthetic import SyntheticEncoder
from workers.prepare.dataset import Preparation, PreparationFailed, prepare_dataset
from workers.prepare.progress import DatasetProgress
from workers.prepare.tasks import end_children

SPEC = ModelSpec.model_validate(
    {
        "width": 8,
        "modalities": {
            "image": {"width": 4, "encoder": "places"},
            "text": {"width": 3, "encoder": "words"},
            "depth": 2,
        },
        "training": {"batch_size": 8},
    }
)
PLACES = {"name": "places", "kind": "synthetic", "takes": "numbers", "width": 4, "max_batch": 64}
# Of items that may be so large, a unit has 64 rows.
LARGE = {"max_item_bytes": 256 << 20}
DEFAULT = {"name": "words", "kind": "synthetic", "takes": "text", "width": 3, "max_batch": 16}
WORDS = {**DEFAULT, **LARGE}
ENCODERS = {"image": PLACES, "text": WORDS}


class Died(BaseException):
    """The process was killed."""


class Faulty(SyntheticEncoder):
    """Calls `before` with the items of each pass."""

    def __init__(self, spec: EncoderSpec, before: Callable[[Sequence[Any]], None]) -> None:
        super().__init__(spec)
        self._before = before

    def features(self, items: Sequence[Any]) -> Any:
        """See FrozenEncoder."""
        self._before(items)
        return super().features(items)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", SPEC)


@pytest.fixture(scope="module", autouse=True)
def closed_children() -> Iterator[None]:
    yield
    end_children()


def write_rows(ground: Ground, rows: int, name: str = "raw.jsonl", **changed: Any) -> None:
    """Rows with different places and repeated captions. `changed`: fields by id."""
    lines = []
    for row in range(rows):
        line: dict[str, Any] = {
            "id": f"r{row}",
            "image": [row, 0.5],
            "text": f"caption {row % 40} " * (1 + row % 7),
            "label": str(row % 3),
        }
        lines.append(json.dumps(line | changed.get(f"r{row}", {})))
    (ground.folder / name).write_text("\n".join(lines) + "\n")


def stored(ground: Ground, manifest: DatasetManifest) -> dict[str, bytes]:
    """Every shard of a dataset by its address."""
    shards = (*manifest.shards, *manifest.evaluation_shards)
    uri = f"{ground.store.uri}/"
    return {
        key: ground.store.read(key) for key in (shard.uri.removeprefix(uri) for shard in shards)
    }


def test_raw_rows_become_the_features_of_their_encoders(ground: Ground) -> None:
    write_rows(ground, 160)
    manifest = ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    assert len(manifest.shards) == 3
    tables = [pq.read_table(io.BytesIO(data)) for data in stored(ground, manifest).values()]
    assert [id_ for table in tables for id_ in table["id"].to_pylist()] == [
        f"r{row}" for row in range(160)
    ]
    encoder = load_encoder(EncoderSpec.model_validate(WORDS))
    expected = features(encoder, "caption 1 " * 2)[0]
    assert np.array_equal(tables[0]["feature_b"][1].as_py(), expected)
    assert tables[0]["label"].to_pylist()[:4] == ["0", "1", "2", "0"]
    assert {name: one.digest for name, one in manifest.encoders.items()} == {
        "image": load_encoder(EncoderSpec.model_validate(PLACES)).identity().digest,
        "text": encoder.identity().digest,
    }


class TwiceCluster(InlineCluster):
    """Each worker is lost after its last step, and its unit is done again."""

    def map(self, *arguments: Any, **how: Any) -> Iterator[tuple[Any, Any]]:
        """See Cluster."""
        for step in super().map(*arguments, **how):
            yield from (step, step)


def test_a_unit_that_is_done_twice_counts_once(ground: Ground) -> None:
    write_rows(ground, 160)
    request = ground.request("raw.jsonl", encoders=ENCODERS)
    progress = DatasetProgress(request.dataset, request.request)
    cluster = TwiceCluster(ground.store)
    prepare_dataset(Preparation(ground.store, request, cluster, progress))
    assert progress.rows.done == 160


def test_the_same_rows_are_not_encoded_again(ground: Ground) -> None:
    write_rows(ground, 100)
    first = ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    ground.cluster.batches.clear()
    (ground.folder / "raw.jsonl").rename(ground.folder / "renamed.jsonl")
    second = ground.prepare(ground.request("renamed.jsonl", encoders=ENCODERS, dataset="ds-2"))
    assert ground.cluster.batches == []
    assert list(stored(ground, second).values()) == list(stored(ground, first).values())


def test_the_same_items_with_other_partners_are_not_encoded_again(ground: Ground) -> None:
    write_rows(ground, 100)
    ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    ground.cluster.batches.clear()
    others: dict[str, Any] = {
        f"r{row}": {"id": f"other-{row}", "image": [99 - row, 0.5]} for row in range(100)
    }
    others["r70"]["text"] = "a new caption"
    write_rows(ground, 100, "others.jsonl", **others)
    fields: dict[str, Any] = {"encoders": ENCODERS, "evaluation_share": 0.2}
    manifest = ground.prepare(ground.request("others.jsonl", dataset="ds-2", **fields))
    assert ground.cluster.batches == [1]
    encoder = load_encoder(EncoderSpec.model_validate(PLACES))
    for data in stored(ground, manifest).values():
        for row in pq.read_table(io.BytesIO(data)).to_pylist()[:5]:
            place = f"[{99 - int(row['id'].removeprefix('other-'))}, 0.5]".encode()
            assert row["feature_a"] == features(encoder, place)[0].tolist()


@pytest.mark.parametrize(
    "changed",
    [
        {"owner": "bob"},
        {"encoders": {"image": PLACES, "text": {**WORDS, "normalize": True}}},
    ],
)
def test_rows_of_others_and_of_other_encoders_are_encoded_again(
    ground: Ground, changed: dict[str, Any]
) -> None:
    write_rows(ground, 100)
    ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    ground.cluster.batches.clear()
    fields = {"encoders": ENCODERS, **changed}
    ground.prepare(ground.request("raw.jsonl", dataset="ds-2", **fields))
    assert sum(ground.cluster.batches) > 0


@pytest.mark.parametrize("model", ["scenes", "another"])
def test_an_encoder_starts_only_for_items_that_it_has_not_encoded(
    ground: Ground, model: str
) -> None:
    write_rows(ground, 160)
    first = ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    # Another model has no dataset whose encoders it would know.
    of_model = {"identities": first.encoders} if model == "scenes" else {}
    known: dict[str, Any] = {"encoders": ENCODERS, "model": model, **of_model}

    def missing(spec: EncoderSpec) -> Any:
        raise EncoderUnusable(f"encoder {spec.name!r}: no model")

    ground.cluster.load = missing
    write_rows(ground, 160, "again.jsonl", r7={"text": ""})
    again = ground.prepare(ground.request("again.jsonl", dataset="ds-2", **known))
    assert (again.rows, again.encoders) == (159, first.encoders)
    write_rows(ground, 160, "new.jsonl", r150={"text": "a new caption"})
    with pytest.raises(PreparationFailed, match="no model"):
        ground.prepare(ground.request("new.jsonl", dataset="ds-3", **known))
    ground.cluster.load = load_encoder
    ground.cluster.batches.clear()
    new = ground.prepare(ground.request("new.jsonl", dataset="ds-3", request=1, **known))
    assert (new.rows, ground.cluster.batches) == (160, [1])


def test_rows_are_held_out_by_the_bytes_of_their_first_item(ground: Ground) -> None:
    same: dict[str, Any] = {f"r{row}": {"image": [7, 7]} for row in range(0, 100, 10)}
    write_rows(ground, 400, **same)
    encoders = {"image": PLACES, "text": DEFAULT}
    request = ground.request("raw.jsonl", encoders=encoders, evaluation_share=0.3)
    manifest = ground.prepare(request)
    (held_out,) = manifest.evaluation_shards
    assert held_out.uri.startswith(f"{ground.store.uri}/datasets/{manifest.dataset}/evaluation-0-")
    assert manifest.rows + held_out.rows == 400
    assert 60 < held_out.rows < 180
    learned, kept = (
        {tuple(row) for row in pq.read_table(io.BytesIO(data))["feature_a"].to_pylist()}
        for data in stored(ground, manifest).values()
    )
    assert not learned & kept


def test_held_out_files_are_encoded_too(ground: Ground) -> None:
    write_rows(ground, 50)
    renamed = {f"r{row}": {"id": f"held-{row}"} for row in range(20)}
    write_rows(ground, 20, "held.jsonl", **renamed)
    held = (ground.ref("held.jsonl"),)
    manifest = ground.prepare(
        ground.request("raw.jsonl", evaluation_shards=held, encoders=ENCODERS)
    )
    assert (manifest.rows, [shard.rows for shard in manifest.evaluation_shards]) == (50, [20])


def test_raw_rows_that_are_measured_only_are_encoded_and_copied(ground: Ground) -> None:
    write_rows(ground, 20)
    request = ground.request("raw.jsonl", encoders=ENCODERS, evaluate_only=True)
    manifest = ground.prepare(request)
    (held_out,) = manifest.evaluation_shards
    assert (manifest.rows, held_out.rows) == (0, 20)
    assert held_out.uri.startswith(f"{ground.store.uri}/datasets/{manifest.dataset}/evaluation-0-")
    assert set(manifest.encoders) == {"image", "text"}


def test_a_dataset_without_a_usable_row_cannot_be_measured(ground: Ground) -> None:
    write_rows(ground, 2, r0={"image": None}, r1={"image": None})
    request = ground.request("raw.jsonl", encoders=ENCODERS, evaluate_only=True, max_bad_share=1.0)
    with pytest.raises(PreparationFailed, match="no row of its files can be used"):
        ground.prepare(request)


def test_features_in_raw_rows_need_no_encoder(ground: Ground) -> None:
    rows: dict[str, Any] = {f"r{row}": {"depth": [row, 1.0]} for row in range(30)}
    rows["r4"] = {"depth": [0.0, 0.0]}
    write_rows(ground, 30, **rows)
    pair = {"first": "depth", "second": "text"}
    request = ground.request("raw.jsonl", pair=pair, encoders={"text": WORDS}, max_bad_share=0.1)
    manifest = ground.prepare(request)
    assert set(manifest.encoders) == {"text"}
    assert manifest.rejected is not None
    (bad,) = manifest.rejected.first
    assert (bad.id, bad.row) == ("r4", 4)
    assert bad.reason.startswith("its depth is all zeros")


PICTURES = {"name": "pictures", "kind": "synthetic", "takes": "image", "width": 4, **LARGE}


def write_pictures(ground: Ground, rows: int, flat: Collection[int]) -> None:
    """Drawings of two colours, and some in white on a transparent ground."""
    lines = []
    for row in range(rows):
        colour = (255, 255, 255, 255) if row in flat else (row % 250, 9, 9, 255)
        image = Image.new("RGBA", (3, 2))
        image.putpixel((row % 3, 0), colour)
        image.save(ground.folder / f"{row}.png")
        lines.append({"id": f"p{row}", "image_file_name": f"{row}.png", "text": f"caption {row}"})
    (ground.folder / "raw.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_pictures_of_one_colour_are_used_with_a_warning(ground: Ground) -> None:
    write_pictures(ground, 100, flat=(3, 5, 70, 71))
    fields: dict[str, Any] = {
        "encoders": {"image": PICTURES, "text": WORDS},
        "evaluation_share": 0.5,
    }
    for dataset in ("ds-1", "ds-2"):  # encoded, and found again
        manifest = ground.prepare(ground.request("raw.jsonl", dataset=dataset, **fields))
        assert manifest.rows + manifest.evaluation_rows == 100
        (warning,) = manifest.warnings
        assert warning.startswith(
            "4 of 100 rows have a picture (image) of one flat colour after decoding, such as "
            "'p3', 'p5', 'p70'."
        )
    write_pictures(ground, 20, flat=())
    request = ground.request("raw.jsonl", dataset="ds-3", **fields)
    assert ground.prepare(request).warnings == ()


def test_a_row_whose_feature_is_not_finite_is_left_out(ground: Ground) -> None:
    write_rows(ground, 200, r7={"text": "broken"}, r30={"text": "broken"})

    class Broken(SyntheticEncoder):
        def features(self, items: Sequence[Any]) -> Any:
            rows_BF = super().features(items)
            broken = self.load("broken")
            return np.stack(
                [
                    row if item != broken else row * np.nan
                    for row, item in zip(rows_BF, items, strict=True)
                ]
            )

    ground.cluster.load = lambda spec: Broken(spec) if spec.takes == "text" else load_encoder(spec)
    for dataset in ("ds-1", "ds-2"):  # encoded, and found again
        manifest = ground.prepare(ground.request("raw.jsonl", dataset=dataset, encoders=ENCODERS))
        assert manifest.rows == 198
        assert manifest.rejected is not None
        assert [row.id for row in manifest.rejected.first] == ["r7", "r30"]
        assert "encoder 'words' computed has NaN" in manifest.rejected.first[0].reason


def test_by_default_a_row_with_a_text_of_more_than_64_kib_is_left_out(ground: Ground) -> None:
    longest = "a" * (64 << 10)
    write_rows(ground, 200, r7={"text": longest}, r30={"text": longest + "a"})
    encoders = {"image": PLACES, "text": DEFAULT}
    manifest = ground.prepare(ground.request("raw.jsonl", encoders=encoders))
    assert manifest.rows == 199
    assert manifest.rejected is not None
    (bad,) = manifest.rejected.first
    assert bad.id == "r30"
    assert bad.reason == "its text has more than 65536 bytes; at most 65536 are permitted"


def test_bad_rows_above_one_in_a_hundred_quarantine_the_dataset(ground: Ground) -> None:
    write_rows(ground, 100, r7={"text": ""}, r30={"image": "no numbers"})
    with pytest.raises(PreparationFailed) as caught:
        ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    assert str(caught.value) == (
        "2 of 100 rows cannot be used: 2 %, permitted: 1 %. 98 usable rows would be learned with "
        "--max-bad-share 0.02. The first: raw.jsonl line 8: its text is empty"
    )
    prepared = caught.value.prepared
    assert [row.id for row in prepared.rejected] == ["r7", "r30"]
    assert prepared.needed_share == 0.02
    manifest = ground.prepare(
        ground.request(
            "raw.jsonl", request=1, encoders=ENCODERS, max_bad_share=prepared.needed_share
        )
    )
    assert manifest.rows == 98


def test_a_dataset_with_too_many_bad_rows_to_list_is_not_read_to_its_end(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.prepare.dataset._MOST_LISTED", 10)
    bad: dict[str, Any] = {f"r{row}": {"text": ""} for row in range(160)}
    write_rows(ground, 160, **bad)
    with pytest.raises(PreparationFailed, match="32 of 160 rows cannot be used") as caught:
        ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    # Those of the unit that was read first.
    assert [row.id for row in caught.value.prepared.rejected] == [
        f"r{row}" for row in range(128, 160)
    ]
    assert caught.value.prepared.needed_share is None


def test_a_dry_run_of_a_dataset_with_too_many_bad_rows_counts_the_usable_ones(
    ground: Ground,
) -> None:
    write_rows(ground, 100, r7={"text": ""}, r30={"image": "no numbers"})
    with pytest.raises(AssertionError):  # there is no manifest
        ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS, report_version=0))
    key = layout.preparation_file("ds-0123456789ab", "report")
    report = read_document(ground.store, key, PrepareReport).report
    assert (report.rows, report.rejected_rows) == (98, 2)
    assert "98 usable rows would be learned with --max-bad-share 0.02" in report.refusals[0]
    listed = ground.store.read(layout.rejected_rows("ds-0123456789ab")).splitlines()
    assert [json.loads(line)["id"] for line in listed] == ["r7", "r30"]


def test_messages_name_a_file_as_the_user_does(ground: Ground) -> None:
    write_rows(ground, 100, r7={"text": ""}, r30={"id": "r3"})
    request = ground.request("raw.jsonl", encoders=ENCODERS)
    (ref,) = request.shards
    named = ref.model_copy(update={"name": "My rows.jsonl"})
    with pytest.raises(
        PreparationFailed, match=r"My rows.jsonl line 8: its text is empty"
    ) as caught:
        ground.prepare(request.model_copy(update={"shards": (named,)}))
    assert caught.value.prepared.rejected[1].reason.startswith(
        "an earlier row has its id, in My rows.jsonl;"
    )
    (ground.folder / "raw.jsonl").write_bytes(b"\x89PNG, or so\0")
    with pytest.raises(
        PreparationFailed, match=r"^My rows.jsonl: by its first bytes it is no file"
    ):
        ground.prepare(request.model_copy(update={"shards": (named,)}))


def test_an_encoder_that_computes_other_features_than_recorded_is_refused(ground: Ground) -> None:
    write_rows(ground, 20)
    ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))

    class Another(SyntheticEncoder):
        def features(self, items: Sequence[Any]) -> Any:
            return super().features(items)[:, ::-1]

    # A driver that has just started has leased no encoder yet.
    ground.cluster.load, ground.cluster.identities = Another, {}
    with pytest.raises(PreparationFailed, match="computes other features") as caught:
        ground.prepare(ground.request("raw.jsonl", dataset="ds-2", encoders=ENCODERS))
    assert caught.value.reason == "encoder_mismatch"


def test_an_encoder_that_does_not_start_is_no_fault_of_the_dataset(ground: Ground) -> None:
    write_rows(ground, 20)

    def missing(spec: EncoderSpec) -> Any:
        raise EncoderUnusable(f"encoder {spec.name!r}: no model")

    ground.cluster.load = missing
    with pytest.raises(PreparationFailed) as caught:
        ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS, report_version=0))
    assert caught.value.reason == "encoder_unavailable"


@pytest.mark.parametrize("batch", [0, 5, 11])
def test_a_crash_in_any_batch_changes_nothing_and_repeats_one_unit(
    ground: Ground, tmp_path: Path, batch: int
) -> None:
    undisturbed = Ground(LocalStore(tmp_path / "other"), ground.folder, SPEC)
    write_rows(ground, 160)
    fields: dict[str, Any] = {"encoders": ENCODERS, "evaluation_share": 0.2}
    expected = undisturbed.prepare(undisturbed.request("raw.jsonl", **fields))
    passes = iter(range(1000))

    def die(items: Sequence[Any]) -> None:
        # The probe items are the first pass of each encoder.
        if next(passes) == batch + 2:
            raise Died

    ground.cluster.load = lambda spec: Faulty(spec, die)
    with pytest.raises(Died):
        ground.prepare(ground.request("raw.jsonl", **fields))
    ground.cluster.load = load_encoder
    done, ground.cluster.batches[:] = sum(ground.cluster.batches), []
    manifest = ground.prepare(ground.request("raw.jsonl", **fields))
    assert stored(ground, manifest) == stored(undisturbed, expected)
    again = done + sum(ground.cluster.batches) - sum(undisturbed.cluster.batches)
    assert again <= 2 * 64


def test_items_that_were_deleted_are_encoded_again(ground: Ground) -> None:
    write_rows(ground, 100)
    first = ground.prepare(ground.request("raw.jsonl", encoders=ENCODERS))
    before = list(stored(ground, first).values())
    for key in list(ground.store.keys(layout.encoded())):
        ground.store.delete(key)
    second = ground.prepare(ground.request("raw.jsonl", dataset="ds-2", encoders=ENCODERS))
    assert list(stored(ground, second).values()) == before


def test_a_dry_run_keeps_its_report_and_the_encoded_items_alone(ground: Ground) -> None:
    write_rows(ground, 100)
    fields: dict[str, Any] = {"encoders": ENCODERS, "evaluation_share": 0.2}
    with pytest.raises(AssertionError):  # there is no manifest
        ground.prepare(ground.request("raw.jsonl", dataset="ds-1", report_version=0, **fields))
    assert list(ground.store.keys("datasets/")) == [layout.preparation_file("ds-1", "report")]
    ground.cluster.batches.clear()
    ground.prepare(ground.request("raw.jsonl", dataset="ds-2", **fields))
    assert ground.cluster.batches == []


def test_a_prepared_dataset_has_its_rows_alone(ground: Ground) -> None:
    write_rows(ground, 160)
    request = ground.request("raw.jsonl", encoders=ENCODERS, evaluation_share=0.2)
    manifest = ground.prepare(request)
    folder = layout.dataset_prefix(manifest.dataset)
    assert {layout.dataset_manifest(manifest.dataset), *stored(ground, manifest)} == {
        key for key in ground.store.keys(folder) if not key.endswith("progress.json")
    }
