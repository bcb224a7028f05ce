"""A CLIP model with random weights and an alphabet for a vocabulary: the real code, in a moment."""

import json
from pathlib import Path

import torch

WIDTH = 12
_PIXELS = 16
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def save_tiny_clip(folder: Path) -> None:
    """What sentence-transformers loads as a model for texts and images."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    last = len(words) - 1
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    text = {**_TOWER, **tokens, "vocab_size": len(words), "max_position_embeddings": 256}
    vision = {**_TOWER, "image_size": _PIXELS, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    crop = {"height": _PIXELS, "width": _PIXELS}
    images = CLIPImageProcessorPil(size={"shortest_edge": _PIXELS}, crop_size=crop)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
