"""Files of rows: users' formats, shards for training, and the local disk that they are copied to. No torch."""
