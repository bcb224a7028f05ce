"""What training_rate.py is made of: our loop, its peers, reading, and the start of a job."""
