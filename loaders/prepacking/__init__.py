"""Pre-packing: write, verify and unpack packed folders."""
