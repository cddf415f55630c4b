"""Targets: masks, maps, boxes and points that follow an image through crop, resize and flip."""
