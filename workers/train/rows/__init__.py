"""The rows of a dataset on their way into training.

port.py        what training asks of them
order.py       which rows make up each global batch: a function of the seed and the dataset alone
held.py        all rows in memory, for a dataset that is small
streamed.py    rows on a local disk, for one that is not: memory does not depend on its size
reader.py      from shards in object storage to raw rows, row group by row group
spool.py       the local disk's part
prefetch.py    the next items while the present one is in use
dataset.py     which of the two a dataset gets, and its held-out rows
"""
