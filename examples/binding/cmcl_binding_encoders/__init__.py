"""Encoders that bind modalities in one space, with the code and weights of their authors."""
