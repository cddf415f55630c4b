"""Sources: what a `PackedImageLoader` reads, one module per kind, behind one protocol."""
