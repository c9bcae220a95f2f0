"""AToM-Net, the motion network: speech features and one face → 3D landmarks."""
