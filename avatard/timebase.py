"""The constants that everything is counted in: frames, samples, landmarks, blend shapes and the networks' crop.

Frame n starts at n/25 s and at sample n · 640.
"""

from typing import Final

FPS: Final = 25
SAMPLE_RATE_HZ: Final = 16_000
SAMPLES_PER_FRAME: Final = SAMPLE_RATE_HZ // FPS  # 640
FRAME_SECONDS: Final = 1 / FPS
FRAME_MS: Final = 1_000 // FPS  # 40
FRAME_US: Final = 1_000_000 // FPS  # 40,000
SAMPLES_PER_MS: Final = SAMPLE_RATE_HZ // 1_000  # 16

#: Side of the square crop that the video networks see, in pixels.
CROP_SIDE: Final = 256
#: iBUG facial landmarks and ARKit blend shapes of a face.
LANDMARKS: Final = 68
BLENDSHAPES: Final = 52

#: What viewers hear, and its samples for each sample that the networks hear.
PLAYBACK_RATE_HZ: Final = 48_000
PLAYBACK_RATIO: Final = PLAYBACK_RATE_HZ // SAMPLE_RATE_HZ  # 3
