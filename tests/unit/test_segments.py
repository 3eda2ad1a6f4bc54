"""Long video: joins, drift control, and resuming after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.sampling.segments import (
    SegmentStore,
    check_overlap,
    fingerprint,
    join,
    keep_statistics,
    make_segments,
)
from support.patience import until

COUNT = 4
OVERLAP = 5


def make(index: int, before: Tensor | None) -> Tensor:
    """A segment that starts with the end of the one before."""
    clip = torch.randn(1, 4, 15, 2, 2, generator=torch.Generator().manual_seed(index)) * 1.5 + 0.3
    if before is not None:
        clip[:, :, :OVERLAP] = before[:, :, -OVERLAP:]
    return clip


def run(folder: Path | None, maker=make) -> list[Tensor]:
    store = SegmentStore(folder, "run") if folder else None
    return make_segments(COUNT, maker, store, overlap=OVERLAP, drift_control=0.7)


def test_no_frame_comes_twice_and_none_is_lost() -> None:
    clips = [torch.arange(k * 10, k * 10 + 15).float().reshape(1, 1, 15, 1, 1) for k in range(3)]
    assert join(clips, OVERLAP).flatten().tolist() == list(range(35))


def test_the_total_fills_whole_groups() -> None:
    clips = [torch.zeros(1, 1, 30, 1, 1)] * 2
    assert join(clips, 3).shape[2] == 55


def test_a_single_image_is_kept() -> None:
    image = torch.randn(1, 4, 1, 2, 2)
    assert torch.equal(join([image], OVERLAP), image)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run(None)

    def broken(index: int, before: Tensor | None) -> Tensor:
        if index == 2:
            raise KeyboardInterrupt
        return make(index, before)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, broken)
    made: list[int] = []

    def counting(index: int, before: Tensor | None) -> Tensor:
        made.append(index)
        return make(index, before)

    resumed = run(tmp_path, counting)
    assert made == [2, 3]
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.pack import load_pack
load_pack()
sys.path.insert(0, sys.argv[2])
import test_segments as here
def slow(index, before):
    clip = here.make(index, before)
    if index == 2:
        Path(sys.argv[3], "inside").touch()
        time.sleep(60)
    return clip
here.run(Path(sys.argv[3]), slow)
"""


def test_a_killed_process_leaves_whole_segments_and_the_next_one_goes_on(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(here.parent), str(here), str(tmp_path)])
    until(lambda: (tmp_path / "inside").exists() or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in tmp_path.glob("segment_*")) == [
        "segment_0000.safetensors",
        "segment_0001.safetensors",
    ]
    made: list[int] = []

    def counting(index: int, before: Tensor | None) -> Tensor:
        made.append(index)
        return make(index, before)

    resumed = run(tmp_path, counting)
    assert made == [2, 3]
    assert all(torch.equal(a, b) for a, b in zip(run(None), resumed, strict=True))


def test_a_damaged_segment_is_made_again(tmp_path: Path) -> None:
    run(tmp_path)
    path = SegmentStore(tmp_path, "run").path(1)
    path.write_bytes(path.read_bytes()[:100])
    made: list[int] = []

    def counting(index: int, before: Tensor | None) -> Tensor:
        made.append(index)
        return make(index, before)

    assert all(torch.equal(a, b) for a, b in zip(run(None), run(tmp_path, counting), strict=True))
    assert made == [1]


def test_other_settings_start_over(tmp_path: Path) -> None:
    run(tmp_path)
    assert SegmentStore(tmp_path, "run").load(0) is not None
    assert SegmentStore(tmp_path, "another run").load(0) is None


def test_the_fingerprint_sees_numbers_text_and_tensors() -> None:
    base = {"steps": 30, "text": ["a", "b"], "latent": torch.zeros(2, 2), "more": {"x": 1.0}}
    changed = [
        {**base, "steps": 31},
        {**base, "text": ["a", "c"]},
        {**base, "text": ["ab"]},
        {**base, "latent": torch.tensor([[0.0, 0.0], [0.0, 1e-3]])},
        {**base, "latent": torch.zeros(4, 1)},
        {**base, "more": {"x": 2.0}},
    ]
    prints = [fingerprint(parts) for parts in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert fingerprint(dict(reversed(base.items()))) == prints[0]


def test_drift_control_pulls_the_end_and_leaves_the_joint() -> None:
    first = torch.randn(1, 4, 15, 8, 8, generator=torch.Generator().manual_seed(0))
    drifted = torch.randn(1, 4, 15, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 3
    pulled = keep_statistics(drifted, first, 1.0, OVERLAP)
    assert torch.equal(pulled[:, :, :OVERLAP], drifted[:, :, :OVERLAP])
    assert abs(float(pulled[:, :, -1].mean())) < 0.3 < 2.5 < float(drifted[:, :, -1].mean())
    assert float(pulled[:, :, -1].std()) < 1.2
    joint = (pulled[:, :, OVERLAP] - drifted[:, :, OVERLAP]).abs().mean()
    assert joint < (pulled[:, :, -1] - drifted[:, :, -1]).abs().mean() / 5


def test_drift_control_zero_changes_nothing() -> None:
    clip = torch.randn(1, 4, 15, 2, 2)
    assert keep_statistics(clip, clip * 3, 0.0, OVERLAP) is clip


@pytest.mark.parametrize(
    ("version", "overlap", "length", "said"),
    [
        ("1.2", 7, 15, "nearest good value is 5"),
        ("1.2", 15, 15, "nearest good value is 10"),
        ("1.3", 15, 15, "nearest good value is 14"),
        ("1.3", 0, 15, "nearest good value is 1"),
    ],
)
def test_overlaps_that_do_not_fit_are_refused(version: str, overlap: int, length: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_overlap(version, overlap, length)


@pytest.mark.parametrize("version", RELEASES)
def test_the_shortest_segments_that_are_named_can_overlap_and_shorter_ones_cannot(version: str) -> None:
    with pytest.raises(ValueError, match="at least") as refused:
        check_overlap(version, 5, 1)
    named = re.search(
        r"at least (\d+) frames, which are (\d+) latent ones and overlap by at most (\d+)", str(refused.value)
    )
    assert named is not None
    frames, least, most = map(int, named.groups())
    lengths = RELEASES[version].latents.lengths
    assert lengths.counting.latents(frames) == least and lengths.is_good(frames), "what the latent's node takes"
    check_overlap(version, most, least)
    assert lengths.is_good(lengths.counting.frames(least))
    for shorter in range(1, least):
        if lengths.is_good(lengths.counting.frames(shorter)):
            with pytest.raises(ValueError, match="too short to overlap"):
                check_overlap(version, 1, shorter)
