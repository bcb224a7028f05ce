"""The HTTP side of serving: OpenAI's shapes in and out, nothing of Ray."""
