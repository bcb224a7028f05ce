"""A dataset that is larger than memory, learned under a limit that the kernel keeps.

data.py     makes it
rank.py     one rank, as a process of its own
limit.py    the kernel's limit on a rank, and what it says of the rank's memory
page.py     page and picture
"""
