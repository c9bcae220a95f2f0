"""Training data and loss of MC-VDM."""
