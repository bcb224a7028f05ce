"""Attacks of one owner beside the steady work of another; see benchmarks/isolation/__main__.py."""
