"""Image, video and sound files, and resampling."""
