"""The streaming pipeline on the two networks; runs in the inference process."""
