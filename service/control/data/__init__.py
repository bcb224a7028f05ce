"""How data gets in: datasets, and files that are uploaded."""
