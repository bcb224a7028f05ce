"""Pools of ranks that outlive single attempts, so that an attempt does not wait for imports.

server.py     the driver's part: requests in the store, which pool trains each, and what became of it; no Ray
setup.py      what a pool consists of; command line options
actor.py      a pool: the Ray actor with its queue, which runs one Ray Train run after another
queue.py      which attempt is next, and what became of it: plain Python, tested without Ray
group.py      that Ray Train run, and which ends of its ranks are failures; no torch
ranks.py      what each of the ranks does
"""
