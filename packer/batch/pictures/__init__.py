"""Pictures of packs: their tokens, images and targets, as PNG and for notebooks."""
