"""The model that Infinity serves here; made by its own interpreter, in `build`."""
