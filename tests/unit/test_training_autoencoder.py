"""Training of the autoencoders: the encoder's start, the code it is, resuming, and what each stage teaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.opensora_models.vae.causal import CausalConfig
from opensora.opensora_models.vae.distribution import mode
from opensora.training import autoencoder, rendering, scenes
from opensora.training.equal_channels import equalise
from opensora.training.latents import LatentCode


@pytest.fixture(scope="module", params=["1.3", "1.2"])
def model(request: pytest.FixtureRequest) -> autoencoder.Autoencoder:
    return autoencoder.new_autoencoder(autoencoder.RECIPES[request.param])


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    rng = np.random.default_rng(8)
    rows = [scenes.draw_scene(rng, 17, 1.0, scenes.SceneConfig()) for _ in range(6)]
    return rendering.render(rows, 17, 64, 64)


def test_the_encoder_starts_as_a_code_of_patches(model: autoencoder.Autoencoder, clips: torch.Tensor) -> None:
    code = LatentCode(model)
    code.check(model, clips)
    with torch.no_grad():
        unit = model.normalise(model.encode(clips))
    assert 0.5 < float(unit.square().mean()) < 2.0, "latents fit the released normalisation"
    pictures = clips[:, :, ::4]
    error = float((code.pictures(unit) - pictures).square().mean())
    wanted = {"1.3": 28.0, "1.2": 21.0}[model.version]
    assert 10 * np.log10(4 / error) > wanted, "16 or 4 numbers describe a patch well"


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_colour_may_weigh_as_much_as_detail(version: str) -> None:
    spreads = {}
    for weight in (0.0, 0.5, 1.0):
        config = replace(autoencoder.RECIPES[version], colour_weight=weight)
        code = LatentCode(autoencoder.new_autoencoder(config))
        spreads[weight] = code(autoencoder.analysed(config)).std(dim=(0, 2, 3))
    assert spreads[0.0].amin() > 0.99 and spreads[0.0].amax() < 1.01
    squares = spreads[0.5].square()  # roots of what pixels have
    torch.testing.assert_close(squares / squares.mean(), spreads[1.0] / spreads[1.0].mean(), rtol=0.01, atol=0.01)


def test_channels_become_equal_and_drawings_stay(clips: torch.Tensor) -> None:
    config = replace(autoencoder.RECIPES["1.2"], analysed_clips=16, equal_channels=True)
    before, after = (autoencoder.new_autoencoder(config).eval() for _ in range(2))
    for model in before, after:  # as trained ones: no channel goes where it came from
        torch.manual_seed(3)
        for weight in model.temporal_vae.post_quant_conv.parameters():
            weight.data.normal_()
    equalise(after, autoencoder.analysed(config))
    code = LatentCode(after)
    code.check(after, clips)
    spread = code(autoencoder.analysed(config)).std(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(4), rtol=1e-3, atol=0)
    with torch.no_grad():
        images = before.spatial_vae.encode(clips, None, mode)
        added = [model.temporal_vae.moments(images)[:, 4:] for model in (before, after)]
        assert torch.equal(*added), "what drawing from the posterior adds is of unit latents"
        drawn = [model.decode(model.encode(clips), 17) for model in (before, after)]
    assert drawn[0].std() > 0.01
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(autoencoder.code_of(config).weight, code.weight, rtol=1e-3, atol=1e-5)


def test_only_a_code_of_two_stages_is_made_equal() -> None:
    config = small_autoencoder()
    with pytest.raises(ValueError, match="1.3"):
        autoencoder.finished(autoencoder.new_autoencoder(config), replace(config, equal_channels=True))


def test_what_is_exported_is_the_code_that_was_promised(tmp_path: Path) -> None:
    stage = autoencoder.Stage(steps=1, batch=1, frames=17, size=32, rate=2e-3, final_rate=2e-3, part="decoder")
    config = replace(autoencoder.RECIPES["1.2"], stages=(stage,), analysed_clips=16, equal_channels=True)
    autoencoder.train(config, tmp_path)
    exported = LatentCode(autoencoder.averaged_autoencoder(config, tmp_path))
    torch.testing.assert_close(exported.weight, autoencoder.code_of(config).weight)
    unequal = autoencoder.code_of(replace(config, equal_channels=False))
    assert not torch.allclose(exported.weight, unequal.weight, rtol=0.1), "the test would see nothing"


@pytest.mark.parametrize("frames", [1, 17, 33, 34])
def test_latents_show_the_frames_they_are_said_to(model: autoencoder.Autoencoder, frames: int) -> None:
    rng = np.random.default_rng(9)
    rows = [scenes.draw_scene(rng, frames, 1.0, scenes.SceneConfig(0.0, 0.0)) for _ in range(2)]
    with torch.no_grad():
        wanted = model.normalise(model.encode(rendering.render(rows, frames, 32, 32)))
    torch.testing.assert_close(LatentCode(model).clips(rows, frames, 32, 32), wanted, rtol=0, atol=0.01)


def test_an_encoder_that_is_no_code_is_noticed(model: autoencoder.Autoencoder, clips: torch.Tensor) -> None:
    other = autoencoder.empty_autoencoder(autoencoder.RECIPES[model.version])
    with pytest.raises(ValueError, match="not a linear code"):
        LatentCode(model).check(other, clips)


def small_autoencoder() -> autoencoder.AutoencoderConfig:
    network = CausalConfig(width=16, multipliers=(1, 1, 2, 4), blocks=1, groups=4)
    stages = (
        autoencoder.Stage(steps=2, batch=1, frames=5, size=16, rate=1e-3, final_rate=1e-3, part="decoder"),
        autoencoder.Stage(steps=2, batch=1, frames=5, size=16, rate=1e-3, final_rate=1e-3, adversarial=True),
    )
    return replace(autoencoder.AutoencoderConfig(), networks=(network,), stages=stages, analysed_clips=16)


@pytest.mark.parametrize("muon", [0.0, 6.0])
def test_an_interrupted_autoencoder_run_continues_as_if_nothing_happened(tmp_path: Path, muon: float) -> None:
    config = replace(small_autoencoder(), muon=muon)
    whole, steps = autoencoder.train(config, tmp_path / "whole")
    autoencoder.train(config, tmp_path / "parts", last_step=3)
    parts, _ = autoencoder.train(config, tmp_path / "parts")
    assert steps == 4
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert (tmp_path / "parts" / "curves.png").is_file()
    fresh = autoencoder.new_autoencoder(config)
    # The second stage trains the encoder as well.
    assert not torch.equal(fresh.encoder.conv_in.conv.weight, whole.encoder.conv_in.conv.weight), (
        "the second stage trains the encoder as well"
    )


@pytest.mark.parametrize("part", ["image decoder", "temporal decoder", "decoder"])
def test_each_part_of_the_older_autoencoder_learns_alone(tmp_path: Path, part: autoencoder.Part) -> None:
    stage = autoencoder.Stage(steps=3, batch=2, frames=17, size=32, rate=2e-3, final_rate=2e-3, part=part)
    config = replace(autoencoder.RECIPES["1.2"], stages=(stage,), analysed_clips=16)
    fresh = autoencoder.new_autoencoder(config).state_dict()
    trained, _ = autoencoder.train(config, tmp_path)
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, fresh[name])}
    image = {name for name in changed if name.startswith("spatial_vae.module.")}
    assert bool(image) == (part != "temporal decoder") and bool(changed - image) == (part != "image decoder")
    assert not any(".encoder." in name or "quant_conv" in name and "post" not in name for name in changed)


def test_a_decoder_is_trained_for_an_encoder_that_stays(tmp_path: Path) -> None:
    small = small_autoencoder()
    config = replace(small, stages=small.stages[:1])
    known = autoencoder.new_autoencoder(replace(config, seed=14)).half().state_dict()
    trained, _ = autoencoder.train(config, tmp_path, encoder=autoencoder.encoder_of(known))
    same = {name for name, value in trained.state_dict().items() if torch.equal(value, known[name].float())}
    assert {name for name in known if name.startswith("encoder.")} <= same
    assert not any(name.endswith("conv_in.conv.weight") for name in same if name.startswith("decoder."))
    own = LatentCode(autoencoder.new_autoencoder(config)).weight
    assert not torch.allclose(LatentCode(trained).weight, own, atol=0.01), "the test would see nothing"
    again = autoencoder.averaged_autoencoder(config, tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in trained.state_dict().items())


def test_decoders_are_shown_noise_of_many_sizes(tmp_path: Path) -> None:
    latents = torch.zeros(64, 16, 2, 8, 8)
    posterior = 0.05
    for noise, largest in ((0.0, posterior), (0.4, 0.4)):
        run = autoencoder.Run(replace(small_autoencoder(), noise=noise), tmp_path / str(noise))
        deviations = run._noise_on(latents).flatten(1).std(1)
        assert deviations.min() == pytest.approx(posterior, abs=0.01)
        assert deviations.max() == pytest.approx(largest, abs=0.03)
