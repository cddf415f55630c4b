"""Folders of image files as shards: listing a folder, grouping its files, writing them."""
