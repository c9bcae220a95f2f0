"""Training of the mouth painter: windows of mouths, losses, validation."""
