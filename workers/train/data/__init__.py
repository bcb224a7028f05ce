"""The rows of a dataset on their way into training.

rows.py        which rows make up each global batch, what training needs of them, and rows that are held in memory
reader.py      from shards in object storage to rows, row group by row group
dataset.py     held rows, or rows on a local disk for datasets of any size in constant memory; held-out rows
"""
