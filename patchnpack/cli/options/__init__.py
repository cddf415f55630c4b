"""Options of the commands: the flags, their texts parsed, and the files that hold them."""
