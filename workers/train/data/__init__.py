"""The rows of a dataset on their way into training.

rows.py        what training needs of them, and rows that are held in memory
streamed.py    rows on a local disk, for datasets of any size in constant memory
order.py       which rows make up each global batch: a function of the seed and the dataset alone
reader.py      from shards in object storage to rows, row group by row group
dataset.py     whether a dataset is held or streamed, and its held-out rows
"""
