"""Everything that runs inside a training job."""
