"""Video files that nodes made, as numbers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

PERSONS_VIDEO = "video.mp4"
"""What templates call the file of the person."""


def frames_and_rate(file: Path) -> tuple[np.ndarray, float]:
    """Frames uint8 [T, H, W, 3] of a video file and its frames per second."""
    with av.open(str(file)) as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate)


def write_persons_video(folder: Path) -> None:
    """A red square moving right, 30 frames of 96x64 pixels: neither the size nor the length of a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    with av.open(str(folder / PERSONS_VIDEO), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(30):
            frame = np.full((64, 96, 3), 10, np.uint8)
            left = 18 + 7 * index // 10
            frame[22:42, left : left + 20] = (230, 31, 31)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
