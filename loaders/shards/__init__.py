"""Shards: naming, opening, reading and writing tar and parquet files."""
