"""`pack_stream`: batches from any iterable of samples."""
