"""The Ray Serve application that answers embedding queries."""
