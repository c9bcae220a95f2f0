"""Audio sources and the ring they fill, at 16 kHz by absolute sample index."""
