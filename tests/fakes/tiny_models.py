"""Models with random weights, saved as their libraries save them: the real code paths, in a moment."""

import json
from pathlib import Path

import torch

WIDTH = 12
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_tiny_clap(folder: Path) -> None:
    """CLAP's encoder of audio at 48 kHz, with the random excerpts of its published processors."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {**_TOWER, "vocab_size": 100, "max_position_embeddings": 66}
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 4,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "enable_fusion": True,
    }
    torch.manual_seed(0)
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion").save_pretrained(folder)


def save_tiny_whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def save_tiny_dino(folder: Path) -> None:
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    tower = {key: value for key, value in _TOWER.items() if key != "intermediate_size"}
    config = Dinov2Config(**{**tower, "hidden_size": WIDTH}, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    crop = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)


def save_tiny_videomae(folder: Path, frames: int) -> None:
    from transformers import VideoMAEConfig, VideoMAEModel, VideoMAEVideoProcessor

    torch.manual_seed(0)
    config = VideoMAEConfig(
        **{**_TOWER, "hidden_size": WIDTH}, image_size=32, patch_size=16, num_frames=frames
    )
    VideoMAEModel(config).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    VideoMAEVideoProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)


def save_tiny_open_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 16,
            "head_width": 8,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def save_fake_imagebind(folder: Path) -> None:
    """Weights for the model in place of ImageBind's, also as they lie in UniBind's file."""
    from tests.fakes.binding_upstream.imagebind.models.imagebind_model import random_state

    torch.save(random_state(0), folder / "imagebind_huge.pth")
    state = {f"bind.{name}": tensor for name, tensor in random_state(1).items()}
    points = {
        "bind.modality_head_point.0.weight": torch.zeros(2),
        "point_encoder.x": torch.zeros(2),
    }
    torch.save({**state, **points}, folder / "unibind.pt")


def save_fake_languagebind(folder: Path) -> None:
    """A folder of weights for each model in place of LanguageBind's."""
    from tests.fakes.binding_upstream.languagebind import Model

    for seed, name in enumerate(("Image", "Video_FT", "Audio_FT", "Depth", "Thermal")):
        torch.manual_seed(seed)
        (folder / name).mkdir()
        torch.save(Model().state_dict(), folder / name / "pytorch_model.bin")
