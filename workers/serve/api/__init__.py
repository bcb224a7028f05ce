"""The HTTP API of a replica, in OpenAI's shapes; it runs without Ray."""
