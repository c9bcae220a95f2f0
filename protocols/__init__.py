"""Bytes on the wire; knows nothing of torch."""
