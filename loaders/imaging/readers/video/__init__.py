"""The reader of videos: MP4, Matroska and AVI."""
