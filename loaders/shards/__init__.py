"""Shards: tar and parquet files, how they are named, opened, read and written."""
