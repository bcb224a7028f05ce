"""What a job is told and what it answers: pydantic models only, no torch, no Ray, no buckets."""
