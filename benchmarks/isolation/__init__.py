"""Attacks of one owner during the steady work of another; see benchmarks/isolation/__main__.py."""
