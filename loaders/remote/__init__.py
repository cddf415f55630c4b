"""Remote files: addresses, retries, downloads, and the local shard cache."""
