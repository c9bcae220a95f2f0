"""Synthesis of training clips from still portraits."""
