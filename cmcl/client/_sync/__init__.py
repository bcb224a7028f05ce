# Generated from cmcl/client/_async/__init__.py by `make docs`; edit that file.
"""The client, a module per kind of call: `_async` is written, `_sync` is generated from it."""
