"""A decode or encode that is killed is repeated in the strips it had, whatever memory is free by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.vae.strips import Strips

pytestmark = pytest.mark.comfy

LATENTS = {"1.2": (1, 4, 2, 6, 6), "1.3": (1, 16, 2, 6, 6), "2.0": (1, 16, 2, 6, 6), "2.0-hc": (1, 128, 1, 3, 3)}
AMPLE, SCARCE = Strips(1 << 26, images=4), Strips(1 << 14, True, 1)


class Killed(BaseException):
    """As sudden as a killed process."""


class Machine:
    """An output folder, a VAE and as much free memory as a test wants."""

    def __init__(self, folder: Path, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import folder_paths

        from opensora.opensora_models.native.vae import plans

        self.folder, self.vae, self.plan = folder, vae, AMPLE
        monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
        monkeypatch.setattr(plans, "candidate_plans", lambda: [AMPLE, SCARCE])
        monkeypatch.setattr(plans, "fitting", lambda *_, **__: self.plan)

    def run(self, work: str, clip: Tensor) -> Tensor:
        from opensora.opensora_models.native.vae.decoding import decode_images, encode_images

        if work == "decode":
            return decode_images(self.vae, clip, None, "auto")
        return encode_images(self.vae, clip, "auto", None)

    def notes(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def killed(self, work: str, clip: Tensor) -> None:
        """Begin, and end as a killed process does: nothing is tidied up."""
        from opensora.opensora_models.native.vae import plans

        def die(*_: Any, **__: Any) -> Tensor:
            raise Killed

        with pytest.MonkeyPatch.context() as dying:
            dying.setattr(plans, "remove_if_idle", lambda *_, **__: None)
            for name in ("decode_piece", "encode_piece"):
                dying.setattr(type(self.vae.network), name, die)
            with pytest.raises(Killed):
                self.run(work, clip)
        assert self.notes()


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, comfy: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    from opensora.opensora_models.native.vae.vae import load_vae

    file = tiny_models / "vae" / f"random-vae-v{request.param}.safetensors"
    return Machine(tmp_path, load_vae(file, dtype=torch.float32), monkeypatch)


def clip_for(work: str, release: str) -> Tensor:
    """Latents, or pictures [F, H, W, 3] of a size that no other test of this file has."""
    shape = LATENTS[release]
    drawn = torch.Generator().manual_seed(5)
    if work == "decode":
        return torch.randn(shape, generator=drawn)
    pixels = 32 if release == "2.0-hc" else 8
    return torch.rand(1 if release == "2.0-hc" else 5, shape[3] * pixels, shape[4] * pixels, 3, generator=drawn)


@pytest.mark.parametrize("work", ["decode", "encode"])
@pytest.mark.parametrize(("machine", "release"), [(each, each) for each in LATENTS], indirect=["machine"])
@torch.inference_mode()
def test_what_was_killed_is_repeated_in_its_strips(
    work: str, release: str, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "opensora")
    clip = clip_for(work, release)
    ample = machine.run(work, clip)
    machine.plan = SCARCE
    scarce = machine.run(work, clip)
    assert not torch.equal(ample, scarce)  # else this test proves nothing
    torch.testing.assert_close(ample, scarce, atol=1e-3, rtol=0)
    assert not machine.notes() and not list(machine.folder.iterdir())
    machine.killed(work, clip)
    machine.plan = AMPLE
    assert torch.equal(machine.run(work, clip), scarce)
    assert f"began this {work} in other strips" in caplog.text
    assert not list(machine.folder.iterdir())
    assert torch.equal(machine.run(work, clip), ample)  # and only that once


@pytest.mark.parametrize("machine", ["1.3"], indirect=True)
@torch.inference_mode()
def test_notes_that_do_not_hold(machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Less memory than the killed run had, other frames, damaged notes, and a folder that takes none."""
    from opensora.opensora_models.native.vae import plans

    caplog.set_level("INFO", "opensora")
    clip = clip_for("decode", "1.3")
    ample = machine.run("decode", clip)
    machine.killed("decode", clip)
    machine.plan = SCARCE
    monkeypatch.setattr(type(machine.vae.patcher), "get_free_memory", lambda *_: 1000)
    scarce = machine.run("decode", clip)
    assert not torch.equal(scarce, ample)
    assert "Less memory is free than when this decode was begun" in caplog.text

    machine.killed("decode", clip)
    machine.plan = AMPLE
    assert torch.equal(machine.run("decode", clip + 1), machine.run("decode", (clip + 1).clone()))
    assert len(machine.notes()) == 3  # the other clip's
    for note in machine.notes():
        note.write_text("{}", encoding="utf-8")
    assert torch.equal(machine.run("decode", clip), ample)
    assert not list(machine.folder.iterdir())

    (machine.folder / plans.UNFINISHED).symlink_to(machine.folder / "nowhere" / "\N{SNOWMAN}")
    (machine.folder / "nowhere").write_text("in the way", encoding="utf-8")
    assert torch.equal(machine.run("decode", clip), ample)


@pytest.mark.parametrize("machine", ["1.2"], indirect=True)
@torch.inference_mode()
def test_the_note_of_a_decode_at_work_is_left_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from opensora.opensora_models.native import stored

    clip = clip_for("decode", "1.2")
    undisturbed = machine.run("decode", clip)
    plain = type(machine.vae.network).decode_piece
    reports: list[str] = []

    def piece(*args: Any, **options: Any) -> Tensor:
        reports.append(stored.housekeeping(stored.Choice(), clear=True)[0])
        assert len(machine.notes()) == 3
        return plain(*args, **options)

    monkeypatch.setattr(type(machine.vae.network), "decode_piece", piece)
    assert torch.equal(machine.run("decode", clip), undisturbed)
    assert reports and "0 of 1 removed, 0 bytes" in reports[0] and "in use" in reports[0]
    assert not list(machine.folder.iterdir())
