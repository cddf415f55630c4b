"""Policies: the size of each image, the tokens it keeps, and the random draws behind both."""
