"""Assembly: decode threads fill the buffers of a batch, and the pipeline hands batches out in order."""
