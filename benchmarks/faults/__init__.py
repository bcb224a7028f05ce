"""What the benchmark of faults is made of.

nodes.py      several Ray nodes on this machine
attempts.py   a dataset, and attempts of one job that learns it
bucket.py     an object store that can be away
cases.py      each fault: what is done, and what follows
watch.py      what was seen of an attempt while it ran, and the figures in it
page.py       the table
"""
