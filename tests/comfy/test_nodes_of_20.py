"""Open-Sora 2.0 through the nodes people use: one sampler node equals its single parts; what is refused early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import conditioning, load, randn, spy

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

FRAMES, SIDE = 12, 4
WIDGETS: dict[str, dict[str, Any]] = {
    "OSoraSampler": {
        "steps": 20, "cfg": 7.5, "seed": 3, "denoise": 1.0, "guidance": "automatic", "image_cfg": 3.0,
        "renoise_given": True,
    },
    "OSoraLongVideo": {
        "segments": 2, "steps": 2, "cfg": 7.5, "seed": 3, "overlap": 9, "overlap_strength": 0.0, "drift_control": 0.0,
        "seeds": "new for every segment", "method": "automatic", "resume": False, "guidance": "automatic",
        "image_cfg": 3.0, "renoise_given": True,
    },
    "OSoraReference": {
        "placement": "first frame", "position": 0, "frames": 0, "strength": 0.0, "position_unit": "frame",
        "resize": "crop", "segment": 0,
    },
    "OSoraPlaceReferences": {"method": "automatic", "mask_strategy": "", "align": True},
    "OSoraGuidance": {
        "image_cfg": 3.0, "oscillation": "text and image", "flaw_fix": False, "force_steps": 10, "fade_image": True,
        "initial_image_cfg": 1.0, "start_percent": 0.0, "end_percent": 1.0,
    },
}  # fmt: skip
WIDGETS["OSoraGuider"] = {**WIDGETS["OSoraGuidance"], "cfg": 7.5}


@pytest.fixture(scope="module")
def bench(comfy: Path, tiny_models: Path) -> SimpleNamespace:
    """The nodes by name, and the tiny 2.0."""
    import comfy.sample
    import comfy.samplers

    from opensora.nodes import NODES
    from opensora.opensora_models.native.vae.vae import load_vae

    nodes = {node.define_schema().node_id: node for node in NODES}
    return SimpleNamespace(
        nodes=nodes, model=load(tiny_models, "2.0"), older=load(tiny_models, "1.3"), core=comfy.samplers,
        sample=comfy.sample, vae=load_vae(tiny_models / "vae" / "random-vae-v1.3.safetensors"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def run(bench: SimpleNamespace, name: str, **values: Any) -> Any:
    """The outputs of a node, other widgets as released."""
    return bench.nodes[name].execute(**{**WIDGETS.get(name, {}), **values}).result


def clip(frames: int = FRAMES, release: str | None = "2.0") -> dict[str, Any]:
    latent: dict[str, Any] = {"samples": torch.zeros(1, 16, frames, SIDE, SIDE)}
    return latent if release is None else {**latent, "opensora_release": release}


def chain(bench: SimpleNamespace, frames: int, position: int = 0, before: Any = None, **widgets: Any) -> Any:
    """A reference made of latents."""
    held = {"samples": randn(1, 16, frames, SIDE, SIDE, seed=frames), "opensora_release": "2.0"}
    place = {"position": position, "position_unit": "latent frame"}
    return run(bench, "OSoraReference", clip_latent=clip(), latent=held, references=before, **place, **widgets)[0]


def sigmas_of(bench: SimpleNamespace, steps: int) -> Tensor:
    """The clip's noise levels."""
    return run(
        bench, "OSoraSigmas", model=bench.model, latent=clip(), steps=steps, denoise=1.0, discrete=False,
        transform_scale=1.0, count_frames=True, rounding="exact",
    )[0]  # fmt: skip


KINDS = {
    "text": lambda bench: None,
    "first": lambda bench: chain(bench, 1),
    "first and last": lambda bench: chain(bench, 1, -1, chain(bench, 1)),
    "forwards": lambda bench: chain(bench, 9),
    "backwards": lambda bench: chain(bench, 9, -9),
}


@pytest.mark.parametrize(("kind", "rows"), [(kind, 35 if kind == "text" else 50) for kind in KINDS])
def test_one_node_does_what_the_single_parts_do(bench: SimpleNamespace, kind: str, rows: int) -> None:
    positive, negative, references = conditioning(6), conditioning(6, seed=2), KINDS[kind](bench)
    with spy() as calls:
        done, report = run(
            bench, "OSoraSampler", model=bench.model, positive=positive, negative=negative, latent=clip(),
            references=references,
        )  # fmt: skip
    assert sum(call["x"].shape[0] for call in calls) == rows, "of 60"
    assert done["opensora_release"] == "2.0"
    assert ("Reference 0 fills" in report) is (references is not None) and "experiment" not in report
    if references is not None:
        _, positive, negative, _, _ = run(
            bench, "OSoraPlaceReferences", references=references, latent=clip(), positive=positive, negative=negative
        )
    sigmas = sigmas_of(bench, 20)
    guider = run(bench, "OSoraGuider", model=bench.model, positive=positive, negative=negative)[0]
    start = clip()["samples"]
    noise = bench.sample.prepare_noise(start, 3)
    euler = bench.core.sampler_object("euler")
    torch.testing.assert_close(guider.sample(noise, start, euler, sigmas, seed=3), done["samples"])
    plain = bench.core.CFGGuider(run(bench, "OSoraGuidance", model=bench.model)[0])
    plain.set_conds(positive, negative)
    plain.set_cfg(7.5)
    by_patch = plain.sample(noise, start, run(bench, "OSoraFlowSampler", renoise_given=True)[0], sigmas, seed=3)
    torch.testing.assert_close(by_patch, done["samples"], atol=1e-4, rtol=1e-4)


def test_presets_can_be_chosen_by_name_and_automatic_is_the_right_one(bench: SimpleNamespace) -> None:
    values = {"model": bench.model, "positive": conditioning(6), "negative": conditioning(6, seed=2), "latent": clip()}

    def made(kind: str, guidance: str) -> Tensor:
        return run(bench, "OSoraSampler", **values, references=KINDS[kind](bench), guidance=guidance)[0]["samples"]

    for kind, name in (
        ("text", "2.0 text to video"), ("first", "2.0 given pictures"), ("forwards", "2.0 given clip")
    ):  # fmt: skip
        assert torch.equal(made(kind, "automatic"), made(kind, name)), kind
    assert torch.equal(made("forwards", "2.0 given pictures"), made("forwards", "2.0 given clip")), "clips do not fade"
    assert not torch.equal(made("first", "2.0 given pictures"), made("first", "2.0 given clip"))


def test_a_part_of_the_run_is_guided(bench: SimpleNamespace) -> None:
    positive, negative = conditioning(6), conditioning(6, seed=2)
    model, _ = run(
        bench, "OSoraModelSampling", model=bench.model, latent=clip(), transform_scale=1.0, count_frames=True,
        rounding="exact",
    )  # fmt: skip
    off = {"oscillation": "off", "start_percent": 0.29, "end_percent": 0.61}
    for guider in (
        run(bench, "OSoraGuider", model=model, positive=positive, negative=negative, **off)[0],
        bench.core.CFGGuider(run(bench, "OSoraGuidance", model=model, **off)[0]),
    ):
        guider.set_conds(positive, negative)
        guider.set_cfg(7.5)
        start = clip()["samples"]
        levels = sigmas_of(bench, 10)
        with spy() as calls:
            guider.sample(start, start, bench.core.sampler_object("euler"), levels, seed=3)
        assert [call["x"].shape[0] for call in calls] == [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]


def test_a_mask_on_the_latent_is_cores_inpainting_with_our_sampler_too(bench: SimpleNamespace) -> None:
    start = randn(1, 16, FRAMES, SIDE, SIDE, seed=4)
    mask = torch.ones(1, 1, FRAMES, 1, 1)
    mask[:, :, :4] = 0
    guider = bench.core.CFGGuider(bench.model)
    guider.set_conds(conditioning(6), conditioning(6, seed=2))
    noise, levels = randn(*start.shape, seed=5), torch.tensor([1.0, 0.7, 0.3, 0.0])
    ways = [bench.core.sampler_object("euler"), run(bench, "OSoraFlowSampler", renoise_given=True)[0]]
    euler, ours = (guider.sample(noise, start, way, levels, denoise_mask=mask, seed=3) for way in ways)
    torch.testing.assert_close(ours, euler)
    torch.testing.assert_close(ours[:, :, :4], start[:, :, :4])


def test_ways_of_the_reference_node_are_told_and_refused(bench: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="nearest good value is 0"):
        chain(bench, 1, strength=0.3)
    placed = run(
        bench, "OSoraPlaceReferences", references=chain(bench, 1, 5), latent=clip(), positive=conditioning(6),
        negative=conditioning(6),
    )  # fmt: skip
    assert "An experiment: Open-Sora 2.0" in placed[4] and "between the ends" in placed[4]
    for text in ("0,0,0,-1,1,0.3", "0;0,0,0,1,1,1"):
        with pytest.raises(ValueError, match="nearest good value is 0"):
            run(
                bench, "OSoraPlaceReferences", references=chain(bench, 1), latent=clip(), mask_strategy=text,
                positive=conditioning(6), negative=conditioning(6),
            )  # fmt: skip


def older_reference(bench: SimpleNamespace) -> Any:
    held = {"samples": randn(1, 16, 1, SIDE, SIDE), "opensora_release": "1.3"}
    return run(bench, "OSoraReference", clip_latent=clip(release="1.3"), latent=held)[0]


BAD: dict[str, tuple[str, Any, str]] = {
    "reference of 1.3": ("OSoraSampler", lambda b: {"references": older_reference(b)}, "encoded for Open-Sora 1.3"),
    "reference of 2.0 for 1.3": (
        "OSoraSampler",
        lambda b: {"model": b.older, "latent": clip(5, "1.3"), "references": chain(b, 1)},
        "encoded for Open-Sora 2.0",
    ),
    "reference as large as the clip": (
        "OSoraSampler",
        lambda b: {"latent": clip(9), "references": chain(b, 9)},
        "nothing is left to make; give at most 29 frames",
    ),
    "reference outside": (
        "OSoraSampler",
        lambda b: {"latent": clip(9), "references": chain(b, 1, 11)},
        "nearest good value is 8",
    ),
    "one frame": ("OSoraSampler", lambda b: {"latent": clip(1), "references": chain(b, 1)}, "value is 5 frames"),
    "strategy of 1.2": (
        "OSoraPlaceReferences",
        lambda b: {"references": chain(b, 1), "mask_strategy": "0,0,0,0,1,0.4"},
        "nearest good value is 0",
    ),
    "method of 1.2": (
        "OSoraPlaceReferences",
        lambda b: {"references": chain(b, 1), "method": "frame mask"},
        "nearest good value is given frames",
    ),
    "overlap": ("OSoraLongVideo", lambda b: {"overlap": 12}, "nearest good value is 11"),
    "method of segments": ("OSoraLongVideo", lambda b: {"method": "frame mask"}, "nearest good value is given frames"),
    "vae of 1.3": (
        "OSoraLongVideo",
        lambda b: {"vae": b.vae},
        "The VAE is Open-Sora 1.3's but the model is Open-Sora 2.0",
    ),
    "segment": (
        "OSoraLongVideo",
        lambda b: {"references": chain(b, 1, segment=4)},
        "nearest good value is 1",
    ),
    "overlap and reference": (
        "OSoraLongVideo",
        lambda b: {"references": chain(b, 4, -4, segment=1)},
        "nothing is left to make; the nearest good value is 7",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_before_a_prompt_is_encoded(bench: SimpleNamespace, name: str) -> None:
    node, spoilt, said = BAD[name]
    values = {
        **WIDGETS[node], "model": bench.model, "latent": clip(), "references": None, "positive": None, "negative": None
    }  # fmt: skip
    if node == "OSoraPlaceReferences":
        values.pop("model")
    with pytest.raises(ValueError, match=said):
        bench.nodes[node].check_lazy_status(**{**values, **spoilt(bench)})
    good = {**values, "references": chain(bench, 1)}
    assert bench.nodes[node].check_lazy_status(**good) == ["positive", "negative"]


def test_pictures_are_written_back_by_ksampler_after_place_references(bench: SimpleNamespace) -> None:
    references = chain(bench, 1, -1, chain(bench, 1))
    latent, positive, negative, strategy, _ = run(
        bench, "OSoraPlaceReferences", references=references, latent=clip(), positive=conditioning(6),
        negative=conditioning(6, seed=2),
    )  # fmt: skip
    assert strategy == "0,0,0,0,1,0.0;0,1,0,-1,1,0.0"
    done = bench.sample.sample(
        bench.model, randn(*latent["samples"].shape), 3, 4.0, "euler", "simple", positive, negative, latent["samples"],
        disable_pbar=True, seed=1,
    )  # fmt: skip
    given: Tensor = references.references[0].latent
    assert torch.equal(done[0, :, [0, -1]], given.expand(-1, 2, -1, -1))


def test_settings_that_are_not_2_0s_are_said_on_every_node_that_has_them(
    bench: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    model, prompts = {"model": bench.model}, {"positive": conditioning(6), "negative": conditioning(6, seed=2)}
    numbers = {"cfg": 7.0, "image_cfg": 5.0, "steps": 30}
    schedule = {"denoise": 1.0, "discrete": False, "transform_scale": 1.0, "count_frames": True, "rounding": "exact"}
    nodes: dict[str, dict[str, Any]] = {
        "OSoraSampler": {**prompts, "latent": clip(), **numbers},
        "OSoraLongVideo": {**prompts, "latent": clip(3), "overlap": 1, **numbers},
        "OSoraGuider": {**prompts, "cfg": 7.0, "image_cfg": 0.0},
        "OSoraSigmas": {"latent": clip(), "steps": 30, **schedule},
    }
    with caplog.at_level("INFO", logger="opensora"):
        for name, values in nodes.items():
            caplog.clear()
            run(bench, name, **model, **values)
            own = [f"{key} {good}" for key, good in (("steps", 50), ("cfg", 7.5), ("image_cfg", 3)) if key in values]
            listed = " and ".join(filter(None, (", ".join(own[:-1]), own[-1])))
            assert caplog.text.count(f"Open-Sora 2.0 was released with {listed};") == 1, name
            caplog.clear()
            touched = {"steps": 2} if "steps" in values else {"cfg": 4.0}
            preset = {"guidance": "1.3 given frames"} if "renoise_given" in WIDGETS.get(name, {}) else {}
            run(bench, name, **model, **{**values, **touched, **preset})
            assert "released with steps" not in caplog.text and "released with cfg" not in caplog.text
            assert caplog.text.count("guidance 1.3 given frames is that of another release") == len(preset), name


def test_a_vae_that_the_model_behind_the_clip_cannot_read_is_refused_at_the_reference(bench: SimpleNamespace) -> None:
    """Only a MODEL is sure: a menu's version may be wrong where the VAE and the sampler's MODEL are right."""
    made = {"version": "2.0", "height": 32, "width": 32, "frames": 45, "batch_size": 1}
    (sure,) = run(bench, "OSoraEmptyLatent", **made, model=bench.model)
    (menu,) = run(bench, "OSoraEmptyLatent", **made)
    assert sure["samples"].shape == menu["samples"].shape == clip()["samples"].shape
    picture, held = torch.rand(1, 32, 32, 3), {"samples": randn(1, 16, 1, SIDE, SIDE), "opensora_release": "1.3"}
    for source in ({"vae": bench.vae, "image": picture}, {"latent": held}):
        with pytest.raises(ValueError, match=r"is Open-Sora 1\.3's but .* Open-Sora 2\.0, the release of the MODEL"):
            run(bench, "OSoraReference", clip_latent=sure, **source)
        (found,) = run(bench, "OSoraReference", clip_latent=menu, **source)
        with pytest.raises(ValueError, match=r"encoded for Open-Sora 1\.3"):
            bench.nodes["OSoraPlaceReferences"].check_early(
                references=found, latent=menu, **WIDGETS["OSoraPlaceReferences"]
            )
    own = {"samples": randn(1, 16, 1, SIDE, SIDE), "opensora_release": "2.0"}
    assert run(bench, "OSoraReference", clip_latent=sure, latent=own)[0].references


# ---- with 2.0's own autoencoders ----

VAES = {"2.0": "random-vae-v2.0", "2.0 high compression": "random-vae-v2.0-hc"}


def own_clip(release: str, frames: int = FRAMES) -> dict[str, Any]:
    """The LATENT of a small clip of a release."""
    from opensora.opensora_models.releases.known import RELEASES

    latents = RELEASES[release].latents
    return {"samples": torch.zeros(1, latents.channels, frames, 2, 2), "opensora_release": release}


@pytest.mark.parametrize("release", VAES)
def test_pictures_and_clips_are_encoded_by_the_releases_autoencoder(
    bench: SimpleNamespace, tiny_models: Path, release: str
) -> None:
    from opensora.opensora_models.native.vae.vae import load_vae
    from opensora.opensora_models.releases.known import RELEASES
    from opensora.opensora_models.sampling.pictures import fit_as_original

    rules = RELEASES[release]
    vae, side = load_vae(tiny_models / "vae" / f"{VAES[release]}.safetensors"), 2 * rules.latents.space
    take = rules.given.takes[0]
    film = torch.rand(take + 2, side + 6, 2 * side, 3, generator=torch.Generator().manual_seed(2))
    unmarked = {"samples": own_clip(release)["samples"]}  # the VAE tells the release
    for placement, taken in (("first frame", film[:1]), ("last frame", film[-1:]), ("extend forwards", film[-take:])):
        (found,) = run(bench, "OSoraReference", clip_latent=unmarked, vae=vae, image=film, placement=placement)
        (reference,) = found.references
        latent = vae.encode(fit_as_original(taken, side, side))
        assert torch.equal(reference.latent, latent[0].float().cpu()), placement
        assert reference.release == release
        assert reference.frames == rules.latents.lengths.counting.latents(taken.shape[0])


@pytest.mark.parametrize("release", VAES)
def test_a_long_video_goes_on_through_the_autoencoder(bench: SimpleNamespace, tiny_models: Path, release: str) -> None:
    from opensora.opensora_models.native.vae.vae import load_vae

    vae, model = load_vae(tiny_models / "vae" / f"{VAES[release]}.safetensors"), load(tiny_models, release)
    start = {"model": model, "latent": own_clip(release), "positive": conditioning(), "negative": conditioning(5, 2)}
    for overlap in (1, 3):
        done, report = run(bench, "OSoraLongVideo", **start, vae=vae, overlap=overlap)
        assert done["samples"].shape[2] == 2 * FRAMES - overlap and "segments of 12 latent frames" in report
        assert done["samples"].isfinite().all()
        without, _ = run(bench, "OSoraLongVideo", **start, overlap=overlap)
        assert torch.equal(done["samples"][:, :, :FRAMES], without["samples"][:, :, :FRAMES])
        assert not torch.allclose(done["samples"][:, :, FRAMES:], without["samples"][:, :, FRAMES:], atol=1e-3)
