"""The inference process and the daemon's side of it."""
