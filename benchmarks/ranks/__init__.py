"""One result whatever the number of ranks.

job.py      what each rank does: two datasets of the example stream, and what must not depend on it
wire.py     what the kernel counts on the wire between them
page.py     the page
"""
