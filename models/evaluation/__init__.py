"""Measures of pictures and motion, and the networks that they need. Serving imports nothing of it."""
