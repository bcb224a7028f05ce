"""Queries, one function each; one module for each noun."""
