"""Rates of preparation: encoding through the pipeline, and checking files of features."""
