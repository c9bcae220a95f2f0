"""Training data and loss of AToM-Net."""
