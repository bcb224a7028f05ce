"""What is done to a job, one step at a time: from its turn to a stored version."""
