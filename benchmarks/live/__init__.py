"""Parts of the benchmark from POST to live: a stack that learns a stream, and versions with a long history."""
