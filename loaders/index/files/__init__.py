"""The index of a folder of images or a table of paths: one file per image, and no shards."""
