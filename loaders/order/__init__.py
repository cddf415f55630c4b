"""The order of an epoch: shuffling, mixtures, packs, steps per rank, and resumable state."""
