"""Pixel values of any depth and number of bands: what a batch asks for, and decoding to it."""
