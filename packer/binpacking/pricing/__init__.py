"""What a length is worth: the linear programme of cutting stock, and prices in whole numbers."""
