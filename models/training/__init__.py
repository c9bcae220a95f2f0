"""Training: prepared clips, losses, loops. Serving imports nothing of it."""
