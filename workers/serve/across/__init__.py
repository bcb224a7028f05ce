"""Between two versions of a model: maps for stored vectors, and whether they still meet queries."""
