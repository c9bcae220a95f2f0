"""The streaming pipeline: audio by sample index in, frames by absolute frame number out."""
