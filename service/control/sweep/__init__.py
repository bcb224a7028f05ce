"""Removing what nobody needs any more: what ended, what expired, what was deleted, what is left over."""
