"""First module of Infinity's model: looks up a word's row in a table, in place of a feature.

Infinity loads it from a copy next to the model's weights; it runs in Infinity's environment,
without this package. There is no encoder, because the endpoint gets features as well: both servers
compute the same two products per row.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, PreTrainedTokenizerFast

_UNKNOWN = "[UNK]"
_CONFIG = "config.json"
_WEIGHTS = "table.pt"


class Lookup(nn.Module):
    """Map texts of one word `w<number>` to row `number`."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.width = words, width
        vocabulary = {_UNKNOWN: 0, **{f"w{number}": number + 1 for number in range(words)}}
        plain = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token=_UNKNOWN)
        self.auto_model = nn.Embedding(words + 1, width)
        # Infinity uses it to detect late-interaction models.
        self.auto_model.config = BertConfig(architectures=["Lookup"])

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Return one number per text."""
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"input_ids": torch.tensor([ids[0] for ids in encoded])}

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return rows of the table."""
        features["sentence_embedding"] = self.auto_model(features["input_ids"])
        return features

    def get_sentence_embedding_dimension(self) -> int:
        """Return the width. Called by sentence-transformers."""
        return self.width

    def save(self, folder: str, **_: object) -> None:
        """Save to a folder. Called by sentence-transformers."""
        config = {"words": self.words, "width": self.width}
        (Path(folder) / _CONFIG).write_text(json.dumps(config))
        torch.save(self.auto_model.state_dict(), Path(folder) / _WEIGHTS)

    @staticmethod
    def load(folder: str, **_: object) -> "Lookup":
        """Load from a folder."""
        found = Lookup(**json.loads((Path(folder) / _CONFIG).read_text()))
        state = torch.load(Path(folder) / _WEIGHTS, weights_only=True)
        found.auto_model.load_state_dict(state)
        return found
