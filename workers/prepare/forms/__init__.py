"""The forms of files with raw rows: JSONL, CSV, Parquet and webdataset tar."""
