"""Readers of users' files, which convert rows into one internal form. One module per format; no torch.

The internal form: Parquet with `id`, optional `label`, `feature_a` and `feature_b` (`columns`). A
format is recognised by the first bytes of a file, never by its name (`registry`).
"""
