"""Readers of formats made of ISO boxes: AVIF, HEIC, JPEG 2000 and JPEG XL."""
