"""Bin packing: from lengths to packs. Compiled packers with plain-Python references."""
