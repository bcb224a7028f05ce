"""What is found in a bucket, one noun a module, as rows of the database."""
