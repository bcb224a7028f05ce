"""The page: the control plane for people, rendered on the server, under /ui."""
