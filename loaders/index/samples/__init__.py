"""Samples in an index: which members and pages become rows, and which rows belong together."""
