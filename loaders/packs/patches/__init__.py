"""The patch store: packs written as patches, and read through memory maps."""
