"""Rows of a folder that the client packs are read as they are in the folder."""

from pathlib import Path

import pytest

from cmcl.client import InvalidArgument
from cmcl.client.raw_folder import packed, read_raw_folder
from cmcl.contract.modality import ModalityPair
from tests.fakes.raw_files import IMAGE, TEXT, picture
from tests.unit.prepare.conftest import NewDataset

PAIR = ModalityPair(first="image", second="text")
LANGUAGES = ["a red apple", "ein roter Apfel", "一个红苹果", "تفاحة حمراء", "सेब 🍎"]


def test_a_folder_is_packed_and_read(dataset: NewDataset, tmp_path: Path) -> None:
    folder = tmp_path / "Äpfel"
    (folder / "more").mkdir(parents=True)
    (folder / "apple.png").write_bytes(picture(1))
    (folder / "apple.txt").write_text("\n".join(LANGUAGES), "utf-8-sig")
    (folder / "apple.ogg").write_bytes(b"OggS")
    (folder / "more" / "apple.png").symlink_to(folder / "apple.png")
    (folder / "more" / "apple.txt").write_text("linked\n")
    (folder / "trunc.png").write_bytes(picture(2, (90, 90))[:-40])
    (folder / "trunc.txt").write_text("one\ntwo\n")
    raw = read_raw_folder(folder, PAIR)
    assert raw is not None
    assert f"{folder}: 3 pictures, 8 captions (about 3 a picture)" in str(raw)
    data = dataset(IMAGE, TEXT)
    for step in packed(raw, PAIR, raw.name, tmp_path):
        if step.tar is not None:
            data.add(step.tar.name, step.tar.read_bytes())
    read = data.read()
    assert [(row.id, row.items[1]) for row in read.rows] == [
        *((f"apple.png#{at}", text) for at, text in enumerate(LANGUAGES, start=1)),
        ("more/apple.png", "linked"),
    ]
    assert len({row.keys[0] for row in read.rows}) == 1
    assert [(row.id, row.place) for row in read.rejected] == [
        ("trunc.png#1", "trunc.png"),
        ("trunc.png#2", "trunc.png"),
    ]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for end in (b".png", b".txt"):
        Path(tmp_path, (b"\xe9t\xe9" + end).decode(errors="surrogateescape")).write_bytes(b"x")
    with pytest.raises(InvalidArgument, match=r"is not UTF-8; rename the file"):
        read_raw_folder(tmp_path, PAIR)
