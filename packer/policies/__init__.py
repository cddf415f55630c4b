"""Policies: the size each image is given, the tokens it keeps, and the random draws behind both."""
