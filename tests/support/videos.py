"""Video files that nodes made, as numbers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def frames_and_rate(file: Path) -> tuple[np.ndarray, float]:
    """Frames uint8 [T, H, W, 3] of a video file and its frames per second."""
    with av.open(str(file)) as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate)
