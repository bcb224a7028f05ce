"""Exports of sites that share nothing become the version that learned all datasets in one place."""

import json
from pathlib import Path

import pytest

from cmcl.contract.errors import CannotCombine
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage import layout
from cmcl.storage.local import LocalStore
from tests.unit.train.test_unlearn_and_merge import SPEC, Bench, assert_same_scores
from workers.merge_exports import main, merge_exports
from workers.model.artifact import load_heads
from workers.model.heads import ModalityHeads
from workers.serve.export.formats import (
    HEADS_FILE,
    evaluation_matrix,
    export_files,
    moments_files,
    write_files,
)

# Of two sites, which have one dataset in common, and of a third one.
SITES = {"north": "ce", "south": "dce", "west": "ab"}


def export(bench: Bench, manifest: VersionManifest, folder: Path) -> Path:
    files = export_files(
        manifest,
        evaluation_matrix(bench.store, manifest),
        bench.heads(manifest),
        "safetensors",
        moments_files(bench.store, manifest),
    )
    write_files(files, folder)
    return folder


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of a model of the same name at each site."""
    folder = tmp_path_factory.mktemp("sites")
    exports = {}
    for site, datasets in SITES.items():
        bench = Bench(LocalStore(folder / f"store-{site}"), folder)
        exports[site] = export(bench, bench.learn("scenes", datasets), folder / site)
    return exports


def heads_of(folder: Path) -> ModalityHeads:
    return load_heads([(folder / HEADS_FILE).read_bytes()], SPEC)


def manifest_of(folder: Path) -> VersionManifest:
    return VersionManifest.model_validate_json((folder / layout.MANIFEST).read_bytes())


def test_merged_exports_equal_the_union_and_are_merged_again(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    both, three = tmp_path / "both", tmp_path / "three"
    merged = merge_exports(sites["north"], sites["south"], both)
    assert (merged.model, merged.version) == ("scenes", 3)
    assert sorted(merged.drift) == ["c (ds-c)", "d (ds-d)", "e (ds-e)"]
    found = manifest_of(both)
    assert [line.name for line in found.learned] == ["c", "e", "d"]
    assert set(found.report.not_evaluated) == {"ds-c", "ds-d", "ds-e"}
    assert "`moments/` has the means and second moments" in (both / "README.md").read_text()

    merge_exports(both, sites["west"], three)
    bench = Bench(LocalStore(tmp_path / "store"), tmp_path)
    union = bench.learn("union", "abcde")
    assert_same_scores(heads_of(three), bench.heads(union))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_an_export_that_cannot_be_merged_is_refused_in_one_line(
    sites: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    north, south = sites["north"], sites["south"]

    def copied(name: str) -> Path:
        folder = tmp_path / name
        (folder / "moments").mkdir(parents=True)
        for path in south.rglob("*.*"):
            if path.is_file() and path.parent.name != "pictures":
                (folder / path.relative_to(south)).write_bytes(path.read_bytes())
        return folder

    without = copied("without")
    for path in without.glob("moments/*"):
        path.unlink()
    (without / "moments").rmdir()
    damaged = copied("damaged")
    file = next(damaged.glob("moments/*"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    other, wrong = copied("other"), copied("wrong-heads")
    spec = ModelSpec.model_validate({**SPEC.model_dump(), "seed": 7})
    changed = manifest_of(other).model_copy(update={"spec": spec})
    (other / layout.MANIFEST).write_text(changed.model_dump_json())
    (wrong / HEADS_FILE).write_bytes((north / HEADS_FILE).read_bytes())
    for theirs, message in (
        (tmp_path / "nowhere", "is no export of a version"),
        (without, "export the version with --format safetensors --with-moments"),
        (damaged, "are not those of the manifest (SHA-256)"),
        (other, "the specifications differ in seed: 0 and 7"),
        (wrong, "self-test of head"),
        (north, "has every dataset of"),
    ):
        assert main([str(north), str(theirs), str(tmp_path / "out")]) == 2
        printed = capsys.readouterr()
        assert printed.out == "", theirs
        (line,) = printed.err.splitlines()
        assert message in line
        assert not (tmp_path / "out").exists()
    with pytest.raises(CannotCombine, match="exists already"):
        merge_exports(north, south, north)


def test_the_command_prints_what_it_wrote(
    sites: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main([str(sites["north"]), str(sites["west"]), str(folder)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["version"], printed["folder"]) == ("scenes", 3, str(folder))
    assert "a (ds-a)" in printed["drift"]
