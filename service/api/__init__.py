"""The HTTP API: parse, call the domain packages, answer."""
