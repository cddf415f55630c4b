"""Imaging: from encoded bytes to upright pixels of the planned size."""
