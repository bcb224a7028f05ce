"""The forms in which rows come in and embeddings go out."""
