# Generated from cmcl/client/_async/__init__.py by `make docs`; edit that file.
"""The asynchronous client, one module per noun; the synchronous one is generated from it."""
