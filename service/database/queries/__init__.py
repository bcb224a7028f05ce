"""Queries, one function each; one module for each noun.

Statements that loops execute all the time are constants of their module, so that each is built once.
"""
