"""Reading every shard of a dataset before anything is trained on it, where it can harm nobody."""
