"""Copies of versions in other people's tools: MLflow, Weights & Biases, TensorBoard, OpenLineage.

A follower outside the control plane reads it through the client and writes to one target. Packages of the
targets are optional and imported when a target is opened.
"""
