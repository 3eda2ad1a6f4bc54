"""Writes a video group by group: each group is one small complete file, joined without encoding again at the end.

A process that dies leaves the groups it finished; the next run with the same key continues at the first missing one.
Memory never holds more than one group of frames.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

# Code points of ITU-T H.273: BT.709 primaries, transfer and matrix.
BT709 = 1
RATE_STEPS = 1000  # frame rates are kept to a thousandth, as ComfyUI's Save Video does


@dataclass(frozen=True)
class VideoFormat:
    """A container with its codec; ``options`` are the encoder's, ``{quality}`` is filled in."""

    ending: str
    codec: str
    options: Mapping[str, str]


FORMATS = {
    # No B-frames: groups then follow each other without gaps in decoding time.
    "mp4 (h264)": VideoFormat(".mp4", "libx264", {"crf": "{quality}", "preset": "medium", "bf": "0"}),
    "webm (vp9)": VideoFormat(
        ".webm", "libvpx-vp9",
        {"crf": "{quality}", "b:v": "0", "row-mt": "1", "cpu-used": "4", "auto-alt-ref": "0", "lag-in-frames": "0"},
    ),
}  # fmt: skip


def exact_rate(rate: float) -> Fraction:
    """The frame rate as a fraction, to a thousandth."""
    if not 0 < rate <= 1000:
        raise ValueError(
            f"A video cannot have {rate} frames per second; give a value above 0 and up to 1000, such as 24."
        )
    return Fraction(round(rate * RATE_STEPS), RATE_STEPS)


@dataclass(frozen=True)
class VideoJob:
    """One decoding job: its parts lie in ``<folder>/<clip>/<settings>`` until a video of the clip is complete."""

    folder: Path
    clip: str
    settings: str

    @classmethod
    def of(cls, folder: Path, latents: Tensor, *settings: Any) -> VideoJob:
        """The same latents and settings give the same job."""
        digest = hashlib.sha256(repr(tuple(latents.shape)).encode())
        digest.update(latents.detach().cpu().contiguous().float().numpy().tobytes())
        return cls(folder, digest.hexdigest()[:20], hashlib.sha256(repr(settings).encode()).hexdigest()[:20])

    @property
    def parts(self) -> Path:
        """Folder of the finished groups."""
        return self.folder / self.clip / self.settings

    def finish(self) -> None:
        """Remove the parts of this and of every other unfinished video of the clip."""
        shutil.rmtree(self.folder / self.clip)


def unfinished_videos(folder: Path) -> tuple[int, int]:
    """Number of unfinished videos below ``folder``, and their bytes."""
    jobs = [job for clip in folder.glob("*") if clip.is_dir() for job in clip.iterdir()]
    return len(jobs), sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class GroupedVideo:
    """The files of one unfinished video below ``folder``."""

    def __init__(self, folder: Path, kind: VideoFormat, rate: Fraction, quality: int) -> None:
        self.folder, self.kind, self.rate, self.quality = folder, kind, rate, quality
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, number: int) -> Path:
        """The file of one group."""
        return self.folder / f"{number:05d}{self.kind.ending}"

    def done(self) -> int:
        """Number of leading groups that are complete."""
        number = 0
        while self.part(number).is_file():
            number += 1
        return number

    def write(self, number: int, frames: Tensor) -> None:
        """Encode one group of frames [T, H, W, 3] in [0, 1]."""
        path = self.part(number)
        unfinished = path.with_name(f"unfinished{self.kind.ending}")
        with av.open(str(unfinished), "w") as container:
            _encode(container, frames, self.kind, self.rate, self.quality)
        os.replace(unfinished, path)

    def join(self, groups: int, target: Path, metadata: Mapping[str, Any] | None) -> int:
        """Copy all groups into one file, which appears complete or not at all; gives the number of frames.

        The groups stay where they are.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.stem}.part{target.suffix}")
        options = {"movflags": "use_metadata_tags+faststart"} if self.kind.ending == ".mp4" else {}
        with av.open(str(unfinished), "w", options=options) as out:
            for key, value in (metadata or {}).items():
                out.metadata[key] = json.dumps(value)
            frames = self._copy(out, [self.part(number) for number in range(groups)])
        os.replace(unfinished, target)
        return frames

    def _copy(self, out: Any, parts: Iterable[Path]) -> int:
        stream = None
        frames = 0
        for path in parts:
            with av.open(str(path)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(video)
                frames += _append(out, stream, source, video, frames, self.rate)
        return frames


def _append(out: Any, stream: Any, source: Any, video: Any, before: int, rate: Fraction) -> int:
    """Move the packets of one group behind ``before`` frames; gives the number of frames of the group."""
    shift = round(before / rate / video.time_base)
    count = 0
    for packet in source.demux(video):
        if packet.dts is None:
            continue
        packet.pts += shift
        packet.dts += shift
        packet.stream = stream
        out.mux(packet)
        count += 1
    return count


def _encode(container: Any, frames: Tensor, kind: VideoFormat, rate: Fraction, quality: int) -> None:
    stream = container.add_stream(kind.codec, rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {key: value.format(quality=quality) for key, value in kind.options.items()}
    context = stream.codec_context
    context.color_range = ColorRange.MPEG
    context.colorspace = context.color_primaries = context.color_trc = BT709
    for frame in _yuv_frames(frames):
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _yuv_frames(frames: Tensor) -> Iterator[Any]:
    """8-bit limited-range BT.709 frames."""
    for image in frames:
        # Rounded to one of 256 levels, as upstream saves: (x + 1) / 2 · 255 + 0.5, truncated.
        pixels = image.float().clamp(0, 1).mul(255).add(0.5).to(torch.uint8).cpu().contiguous().numpy()
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        yield frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )  # fmt: skip
