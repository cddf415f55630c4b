"""The index: one row per image, read from headers. Scanning, files and lookup."""
