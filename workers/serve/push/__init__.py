"""Replicas are told at once that the store has something new. Only for speed: they look anyway.

control plane ── POST /internal/announcements ──> any replica ──> actor ──> every replica looks
"""
