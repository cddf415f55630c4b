"""Analysis of a packing before any pixel is read: report, sweep, advice, baselines."""
