"""Webhooks: where they may lie, when a message is tried again, how it is signed and sent."""
