"""The asynchronous client, one module per noun; the synchronous one is generated from it."""
