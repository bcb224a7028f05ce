"""Preparation: what users sent becomes verified internal shards."""
