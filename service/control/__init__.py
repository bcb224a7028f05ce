"""Decisions: intake, reconcile, gate, promote. No HTTP, no SQL text, no Ray."""
