"""Writes a video group by group: each group is one small complete file, joined without encoding again at the end.

A process that dies leaves the groups it finished; the next run with the same key continues at the first missing one.
Memory never holds more than one group of frames.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from ..messages.quoting import shown_path
from ..storage.identity import tensor_digest
from ..storage.locks import POLL_SECONDS, WANTED, remove_if_idle
from ..storage.pieces import Pieces
from ..storage.places import clear, is_folder
from ..storage.writing import write_new, write_whole

logger = logging.getLogger("opensora")

# Code points of ITU-T H.273: BT.709 primaries, transfer and matrix.
BT709 = 1
RATE_STEPS = 1000  # frame rates are kept to a thousandth, as ComfyUI's Save Video does
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')  # of JSON
KEPT = "finished parts are kept and the next run goes on from them"


@dataclass(frozen=True)
class VideoFormat:
    """A container with its codec; ``options`` are the encoder's, ``{quality}`` is filled in."""

    ending: str
    container: str
    codec: str
    options: Mapping[str, str]


FORMATS = {
    # No B-frames: groups then follow each other without gaps in decoding time. No macroblock tree: with it
    # libx264's assembler now and then encodes the same frames to other bits, and a part made again must be the same.
    "mp4 (h264)": VideoFormat(
        ".mp4", "mp4", "libx264", {"crf": "{quality}", "preset": "medium", "bf": "0", "mbtree": "0"}
    ),
    "webm (vp9)": VideoFormat(
        ".webm", "webm", "libvpx-vp9",
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
        clip = hashlib.sha256(repr(tuple(latents.shape)).encode())
        # As in version 0.1, whose parts have no checksums: they go with the first complete video of their clip.
        clip.update(latents.detach().cpu().contiguous().float().numpy().tobytes())
        exact = repr((*settings, tensor_digest(latents))).encode("utf-8", "surrogatepass")
        return cls(folder, clip.hexdigest()[:20], hashlib.sha256(exact).hexdigest()[:20])

    @property
    def parts(self) -> Path:
        """Folder of the finished groups."""
        return self.folder / self.clip / self.settings

    def finish(self) -> None:
        """Remove the parts of this and of every other unfinished video of the clip that nobody is working on.

        Call it without the lock of the parts: a process that waits for them finds all of them there.
        """
        wanted = self.parts / WANTED
        if wanted.exists():
            with suppress(OSError):
                clear(wanted)
            time.sleep(3 * POLL_SECONDS)
        clip = self.folder / self.clip
        try:
            for parts in sorted(clip.iterdir()):
                remove_if_idle(parts, ours=parts == self.parts)
            clip.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                logger.warning("'%s' could not be removed: %s.", shown_path(clip), error.strerror)


def unfinished_videos(folder: Path, but: str = "") -> tuple[int, int]:
    """Number of unfinished videos below ``folder``, and their bytes; what lies in its folder ``but`` is none."""
    clips = [clip for clip in folder.glob("*") if is_folder(clip) and clip.name != but]
    jobs = [job for clip in clips for job in clip.glob("*") if is_folder(job)]
    size = 0
    for job in jobs:
        for file in job.glob("*"):
            with suppress(OSError):  # another process may just have finished
                size += file.lstat().st_size
    return len(jobs), size


class PartsMissing(Exception):
    """Parts of a video are not there, or not whole, when it is to be joined."""


class GroupedVideo:
    """The files of one unfinished video in ``folder``. Errors of the disk are raised as CannotStore.

    ``job`` names what is decoded and how; parts of another job are never taken. ``about``: what people know it by.
    """

    def __init__(
        self, folder: Path, kind: VideoFormat, rate: Fraction, quality: int, job: str = "", about: str = ""
    ) -> None:
        self.folder, self.kind, self.rate, self.quality = folder, kind, rate, quality
        made_for = repr((job, kind, rate, quality))
        digest = hashlib.sha256(made_for.encode("utf-8", "surrogatepass")).hexdigest()
        self._pieces = Pieces(folder, digest, kept=KEPT, about=about)

    @property
    def pieces(self) -> Pieces:
        """The store of the parts, for what else is kept until the video is complete."""
        return self._pieces

    def part(self, number: int) -> Path:
        """The file of one group."""
        return self._pieces.path(self._name(number))

    def missing(self, groups: int) -> list[int]:
        """The groups that are not there or not whole; what lies in their place is removed."""
        return [number for number in range(groups) if self._pieces.facts(self._name(number)) is None]

    def done(self) -> int:
        """Number of leading groups that are complete."""
        number = 0
        while self._pieces.facts(self._name(number)) is not None:
            number += 1
        return number

    def write(self, number: int, frames: Tensor) -> None:
        """Encode one group of frames [T, H, W, 3] in [0, 1]."""

        def encode(path: Path) -> None:
            with _new_container(path, self.kind) as container:
                _encode(container, frames, self.kind, self.rate, self.quality)

        self._pieces.write(self._name(number), encode, {"frames": frames.shape[0]})

    def join(self, groups: int, target: Path, metadata: Mapping[str, Any] | None) -> int:
        """Copy all groups into one file, which appears complete or not at all; gives the number of frames.

        The groups stay where they are. Raises PartsMissing where some are not there or not whole.
        """
        return write_whole(target, lambda path: self._joined(groups, path, metadata), KEPT)

    def join_new(self, groups: int, choose: Callable[[], Path], metadata: Mapping[str, Any] | None) -> Path:
        """As ``join``, under a name that no file has, which is given back; ``choose`` as for ``write_new``."""
        return write_new(choose, lambda path: self._joined(groups, path, metadata), kept=KEPT)

    def _part(self, number: int) -> Any:
        try:
            return av.open(str(self.part(number)))
        except FileNotFoundError:
            raise PartsMissing(self._name(number)) from None

    def _name(self, number: int) -> str:
        return f"{number:05d}{self.kind.ending}"

    def _joined(self, groups: int, target: Path, metadata: Mapping[str, Any] | None) -> int:
        options = {"movflags": "use_metadata_tags+faststart"} if self.kind.ending == ".mp4" else {}
        with _new_container(target, self.kind, options) as out:
            for key, value in (metadata or {}).items():
                out.metadata[key] = _as_json(value)
            frames = self._copy(out, groups)
        if (written := _frames_in(target)) != frames:
            raise OSError(errno.EIO, f"{written} of {frames} frames arrived")
        return frames

    def _copy(self, out: Any, groups: int) -> int:
        stream = None
        frames = 0
        for number in range(groups):
            facts = self._pieces.facts(self._name(number))
            if facts is None:
                raise PartsMissing(self._name(number))
            with self._part(number) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(video)
                count = _append(out, stream, source, video, frames, self.rate)
            if count != facts["frames"]:
                self._pieces.remove(self._name(number), f"holds {count} of {facts['frames']} frames")
                raise PartsMissing(self._name(number))
            frames += count
        return frames


@contextmanager
def _new_container(path: Path, kind: VideoFormat, options: Mapping[str, str] | None = None) -> Iterator[Any]:
    """A video file to be written. Python opens it: errors then arrive as they are, and it is closed whatever fails."""
    with ExitStack() as files:

        def again(*unused: Any) -> Any:
            return files.enter_context(path.open("rb"))  # to move the index to the beginning

        file = files.enter_context(path.open("wb"))
        with av.open(file, "w", format=kind.container, options=dict(options or {}), io_open=again) as container:
            yield container


def _as_json(value: Any) -> str:
    """JSON whose strings hold no brace as such: ComfyUI's page counts braces to find the end of a graph in a WebM."""
    return _STRING.sub(lambda found: found[0].replace("{", "\\u007b").replace("}", "\\u007d"), json.dumps(value))


def _frames_in(path: Path) -> int:
    """Number of pictures in a video file, none of them decoded."""
    with av.open(str(path)) as file:
        return sum(1 for packet in file.demux(video=0) if packet.size and not packet.is_corrupt)


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
