"""The packed batch, its exports, and pictures of it. The only room of the packer that imports torch."""
