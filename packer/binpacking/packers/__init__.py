"""The compiled packers, and their definitions in plain Python."""
