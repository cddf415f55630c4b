"""Images in files of their own: the table of a source's files, how they are listed, and how they are read."""
