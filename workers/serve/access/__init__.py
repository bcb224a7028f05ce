"""Who may ask, without asking anybody else."""
