"""One module per noun, each with `router(replica)`."""
