"""The protocol of continual text-to-video retrieval, on small splits of the published form."""

import csv
import json
import os
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paper.__main__ import main
from benchmarks.paper.ctvr import hits, read_tasks, run_method
from benchmarks.paper.sources.source import InvalidSource
from benchmarks.runs import spec_of
from tests.unit.benchmarks.command import answer_of
from workers.train.learn import initial_state

WIDTH, TASKS, TRAIN, TEST = 12, 3, 8, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MSRVTT with two captions of a video to train on, and ActivityNet with one."""
    made = tmp_path_factory.mktemp("ctvr")
    draws = np.random.default_rng(0)
    mixing = draws.normal(size=(4, WIDTH)), draws.normal(size=(4, WIDTH))
    splits: dict[str, dict[int, dict[int, list[str]]]] = {"train": {}, "val": {}}
    videos, texts, sentences, tested = {}, {}, [], []
    for task in range(1, TASKS + 1):
        for split, count in (("train", TRAIN), ("val", TEST)):
            names = [f"video{task}{split}{number}" for number in range(count)]
            splits[split][task] = defaultdict(list, {2 * task: names[:2], 2 * task + 1: names[2:]})
            for name in names:
                latent = draws.normal(size=4)
                videos[name] = latent @ mixing[0]
                for caption in (f"{name} one", f"{name} two"):
                    texts[caption] = latent @ mixing[1] + 0.1 * draws.normal(size=WIDTH)
                    sentences.append({"video_id": name, "caption": caption})
                if split == "val":
                    tested.append((name, f"{name} one"))
    write_captions(made, list(videos), sentences, tested)
    for setup in ("MSRVTT_10", "ACTNET_10"):
        (made / f"{setup}_dataset.pkl").write_bytes(pickle.dumps(splits))
    for kind, known in (("videos", videos), ("texts", texts)):
        np.savez(
            made / f"{kind}.npz", id=np.array(list(known)), features=np.stack([*known.values()])
        )
    return made


def write_captions(
    folder: Path,
    videos: list[str],
    sentences: list[dict[str, str]],
    tested: list[tuple[str, str]],
) -> None:
    (folder / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    with (folder / "MSRVTT_CL_validation.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video_id", "sentence"), *tested])
    queries = {name: {"sentences": [f"{name} one", "no more"]} for name in videos}
    for split in ("train", "val"):
        (folder / f"{split}_queries.json").write_text(json.dumps(queries))


def test_splits_and_captions_are_those_of_the_authors(folder: Path) -> None:
    tasks = read_tasks(folder, "msrvtt-10")
    assert [len(task.training) for task in tasks] == [2 * TRAIN] * TASKS
    assert [len(task.queries_QF) for task in tasks] == [TEST] * TASKS
    assert [len(task.training) for task in read_tasks(folder, "actnet-10")] == [TRAIN] * TASKS


def test_a_method_learns_and_videos_keep_their_embeddings(folder: Path) -> None:
    tasks = read_tasks(folder, "msrvtt-10")
    model = {"training": {"batch_size": 4, "epochs": 30}}
    learned, before = (run_method(tasks, name, model) for name in ("vanilla", "untrained"))
    assert learned.again[0] > before.stored[0] + 0.2
    assert before.stored == before.again
    assert before.seconds == 0
    # Heads have moved since the first tasks were stored.
    assert learned.stored != learned.again


def test_hits_are_those_of_sorting_all_videos_so_far(folder: Path) -> None:
    tasks = read_tasks(folder, "msrvtt-10")
    fields = {"width": WIDTH, "modalities": {"text": WIDTH, "video": WIDTH}}
    heads = initial_state(spec_of("vanilla", fields)).heads
    gallery = [heads.embed("video", task.videos_QF) for task in tasks]
    found = hits(tasks, heads, gallery, 1)
    scores = heads.embed("text", tasks[1].queries_QF) @ torch.cat(gallery).mT
    for query, row in enumerate(scores.numpy()):
        place = list(np.argsort(-row)).index(TEST + query)
        assert found[query].tolist() == [place < 1, place < 5, place < 10]


def test_the_command_prints_its_table(folder: Path, tmp_path: Path) -> None:
    run: list[str | Path] = [
        "--protocol",
        "ctvr-msrvtt-10",
        "--root",
        folder,
        "--methods",
        "untrained,improve",
    ]
    answer = answer_of(
        main, *run, "--seeds", "1", "--batch-size", "4", "--work", tmp_path, "--json"
    )
    assert answer.status == 0, answer.stderr
    assert answer.document["protocol"] == "ctvr-msrvtt-10"
    assert answer.document["tasks"] == TASKS
    assert answer.document["methods"]["untrained"]["forgetting"] <= 0.5
    assert answer.document["methods"]["improve"]["recall_at_1"] > 0


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_split_that_could_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "MSRVTT_20_dataset.pkl").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(InvalidSource, match=r"is no published split: it names posix.system"):
        read_tasks(tmp_path, "msrvtt-20")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("ACTNET_10_dataset.pkl", "ACTNET_10_dataset.pkl is missing; it is in JasonCodeMaker/CTVR"),
        ("val_queries.json", "val_queries.json cannot be read"),
        ("videos.npz", "videos.npz cannot be read: .* it has the arrays id and features"),
    ],
)
def test_missing_files_are_named(folder: Path, tmp_path: Path, missing: str, words: str) -> None:
    for path in folder.iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InvalidSource, match=words):
        read_tasks(tmp_path, "actnet-10")


def test_a_video_without_a_feature_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "videos.npz").unlink()
    np.savez(tmp_path / "videos.npz", id=np.array(["other"]), features=np.ones((1, WIDTH)))
    with pytest.raises(InvalidSource, match="'video1train0' of the splits has not a feature in"):
        read_tasks(tmp_path, "actnet-10")
