"""Packed folders: the format, its two stores, and a packed folder as a source."""
