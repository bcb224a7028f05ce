"""The client, a module per kind of call: `_async` is written, `_sync` is generated from it."""
