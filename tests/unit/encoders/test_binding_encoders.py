"""ImageBind, UniBind and LanguageBind: licences, weights, and what their authors' code gets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes.encoder_cases import RAW, Folders, binding, features
from tests.unit.encoders.conftest import Loaded
from workers.encoders.port import EncoderUnusable


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("imagebind", {"options": {"modality": "vision"}}, "non-commercial use only.*--accept-lic"),
        ("unibind", {"options": {"modality": "vision"}}, "CC BY-NC-SA 4.0: non-commercial use"),
        ("languagebind", {"options": {"modality": "vision"}}, "MIT licence"),
        (
            "imagebind",
            {"options": {"modality": "smell"}},
            "options.modality 'smell'; permitted are",
        ),
        ("imagebind", {"options": {"modality": "audio"}}, "for image; audio takes audio"),
        ("imagebind", {"model": "/nowhere/weights.pth"}, "'/nowhere/weights.pth', which does not"),
        ("languagebind", {"model": "/"}, "the folder /Image is missing"),
        ("imagebind", {"width": 768}, "has width 768, but the features of .* have 1024"),
        ("imagebind", {"dtype": "float16"}, "has dtype float16; it takes float32"),
    ],
)
def test_what_cannot_start_says_why(
    folders: Folders, loaded: Loaded, name: str, changes: dict[str, object], words: str
) -> None:
    spec = binding(name, "vision", "image").spec(folders, **changes)
    with pytest.raises(EncoderUnusable, match=words):
        loaded(spec)


def test_without_the_authors_code_it_says_what_to_install(
    folders: Folders, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagebind.data", None)
    with pytest.raises(EncoderUnusable, match=r"pip install git.*ImageBind@COMMIT"):
        loaded(binding("imagebind", "vision", "image").spec(folders))


def test_lengths_of_features_are_those_that_leave_the_model(
    folders: Folders, loaded: Loaded
) -> None:
    for modality, expected in (("text", 100.0), ("vision", 1.0), ("depth", 5.0)):
        takes = "text" if modality == "text" else "image"
        case = binding("imagebind", modality, takes)  # type: ignore[arg-type]
        rows = features(loaded(case.spec(folders)), RAW[case.takes][0])
        assert np.linalg.norm(rows) == pytest.approx(expected, rel=1e-4)


def test_tactile_pictures_pass_vision_and_unibind_has_its_own_weights(
    folders: Folders, loaded: Loaded
) -> None:
    raw = RAW["image"][0]
    vision, tactile, other = (
        features(loaded(binding(name, modality, "image").spec(folders)), raw)
        for name, modality in (
            ("imagebind", "vision"),
            ("imagebind", "tactile"),
            ("unibind", "vision"),
        )
    )
    np.testing.assert_array_equal(vision, tactile)
    assert np.abs(vision - other).max() > 1e-3


def test_pictures_are_cropped_to_the_middle(loaded: Loaded) -> None:
    from cmcl_binding_encoders.declared import cropped  # type: ignore[import-not-found]

    wide = Image.new("RGB", (896, 224))
    wide.paste((255, 0, 0), (336, 0, 560, 224))
    assert np.asarray(cropped(wide)).reshape(-1, 3).min(axis=0).tolist() == [255, 0, 0]
    assert cropped(Image.new("RGB", (10, 500))).size == (224, 224)


def test_a_file_with_other_weights_is_refused(
    folders: Folders, loaded: Loaded, tmp_path: Path
) -> None:
    import torch

    torch.save({"towers.other": torch.zeros(1)}, tmp_path / "imagebind_huge.pth")
    spec = binding("imagebind", "vision", "image").spec(folders, model=str(tmp_path))
    with pytest.raises(EncoderUnusable, match="has other weights than the model"):
        loaded(spec)
