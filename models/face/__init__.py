"""The face: mesh, pose, morphable model, crops and rasters."""
