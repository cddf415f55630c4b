"""The packed batch, its exports, and pictures of it."""
