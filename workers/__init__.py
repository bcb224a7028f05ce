"""The data plane: everything that runs on the Ray cluster. It never imports `service`."""
