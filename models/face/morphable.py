"""The 3DMM (paper eq. 1-2): mean face, identity basis and expression basis at the mesh's vertices.

Canonical frame: x to the right of the picture, y down, z away from the viewer; the origin lies midway between the eye
centres of the mean face and the unit is its interocular distance (about 63 mm on an adult).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avatard.models import checkpoint
from avatard.models.face.pose import Pose, align
from avatard.models.face.topology import MESH_TO_68, MESH_VERTICES, RIGID_MESH

Array = NDArray[np.floating]

#: Measurement noise of a canonical mesh point (interocular units), the weight of the prior in `fit`.
POINT_NOISE = 0.02


@dataclass(frozen=True)
class MorphableModel:
    """M = M̄ + M_id α_id + M_exp α_exp, with α in units of their standard deviations."""

    mean: Array  # [468, 3]
    identity: Array  # [K_id, 468, 3], scaled: one unit of α is one standard deviation
    expression: Array  # [K_exp, 468, 3], scaled likewise

    @classmethod
    def load(cls, name_or_path: str | Path = "morphable") -> MorphableModel:
        """The shipped model, or one from a path. Raises `CheckpointError`. Reads without torch."""
        tensors, _ = checkpoint.load(name_or_path, framework="numpy")
        return cls(*(tensors[key].astype(np.float64) for key in ("mean", "identity", "expression")))

    @property
    def mean_68(self) -> Array:
        """The mean face's iBUG points `[68, 3]`."""
        return self.mean[MESH_TO_68]

    def pose(self, mesh: Array, template: Array | None = None) -> Pose:
        """Pose of image meshes `[..., 468, 3]` by their rigid points; `template` `[468, 3]` is the person's face."""
        template = self.mean if template is None else template
        return align(template[RIGID_MESH], mesh[..., RIGID_MESH, :])

    def frontal(self, meshes: Array, rounds: int = 2) -> tuple[Array, Pose]:
        """One person's image meshes `[N, 468, 3]` → canonical meshes `[N, 468, 3]` and poses `[N]`.

        The rigid points of the person's own median face replace those of the mean face after the first round, so that
        the shape of a face is not mistaken for its pose.
        """
        pose = self.pose(meshes)
        canonical = pose.unproject(meshes)
        for _ in range(rounds - 1 if len(meshes) > 1 else 0):
            pose = self.pose(meshes, np.median(canonical, axis=0))
            canonical = pose.unproject(meshes)
        return canonical, pose

    def landmarks(self, canonical: Array) -> Array:
        """Canonical meshes `[..., 468, 3]` → LM_3D = (M − M̄)_I, `[..., 68, 3]` (eq. 2)."""
        return (canonical - self.mean)[..., MESH_TO_68, :]

    def fit(self, landmarks: Array) -> tuple[Array, Array]:
        """Maximum a posteriori α_id `[..., K_id]` and α_exp `[..., K_exp]` of offsets `[..., 68 or 468, 3]`."""
        points = slice(None) if landmarks.shape[-2] == MESH_VERTICES else MESH_TO_68
        basis = np.concatenate([self.identity, self.expression])[:, points]
        basis = basis.reshape(len(basis), -1)
        gram = basis @ basis.T + POINT_NOISE**2 * np.eye(len(basis))
        flat = landmarks.reshape(*landmarks.shape[:-2], -1)
        alpha = np.linalg.solve(gram, (flat @ basis.T)[..., None])[..., 0]
        return alpha[..., : len(self.identity)], alpha[..., len(self.identity) :]

    def neutral(self, landmarks: Array) -> Array:
        """The face at rest: offsets `[..., 68 or 468, 3]` without what the expression basis explains of them."""
        points = slice(None) if landmarks.shape[-2] == MESH_VERTICES else MESH_TO_68
        _, alpha = self.fit(landmarks)
        rest: Array = landmarks - np.tensordot(alpha, self.expression[:, points], axes=1)
        return rest
