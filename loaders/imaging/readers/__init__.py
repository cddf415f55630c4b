"""One reader per image format: what its header says, and its pixels as PIL gives them."""
