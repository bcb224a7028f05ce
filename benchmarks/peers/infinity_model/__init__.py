"""The model that Infinity serves; `build` runs in Infinity's environment."""
