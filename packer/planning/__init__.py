"""Planning: what each image becomes, and which pack it goes into."""
