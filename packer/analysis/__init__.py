"""Analysis of a packing before any pixel is read: reports, sweeps, advice and baselines."""
