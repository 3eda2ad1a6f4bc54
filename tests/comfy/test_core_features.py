"""Core's features, each proved by its result with the trained tiny models.

Every node of core that README, help pages or tests name stands in ``FEATURES`` or, with the place of its proof, in
``ELSEWHERE``. A setting that should change nothing gives the plain run bit for bit; one that works stays within its own
distance of the plain run and differs from it, or gives what another way to the same result gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from support.pack import PACK_ROOT
from support.shipped import DEMO, of_shipped
from support.takes import (
    ROUNDED,
    SAME,
    Change,
    Studio,
    Take,
    added_and_taken_away,
    advanced,
    averaged,
    batch_row,
    computed_in,
    custom,
    dual_guidance,
    from_half_noise,
    in_halves,
    load_take,
    long,
    long_plain,
    masked_prompt,
    merged,
    moved,
    noise_mask,
    on_model,
    on_positive,
    one_more_guidance,
    other_words_late,
    our_sampler,
    own_shift,
    plain,
    psnr,
    row_alone,
    same_prompt_twice,
    sum_less_one,
    two_prompts_side_by_side,
    with_hook,
    with_lora,
)  # fmt: skip

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = pytest.mark.comfy


@dataclass(frozen=True)
class Feature:
    """Nodes of core, a setting that changes nothing, and one that works.

    ``floor`` are the fewest decibels between the working run and ``like`` (the plain run where that is None, from
    which it must differ as well); None: equal but for rounding. ``exact`` says whether the neutral setting is equal
    bit for bit, or but for rounding. ``releases`` are those in which it has this meaning.
    """

    nodes: tuple[str, ...]
    neutral: Change | None = None
    working: Change | None = None
    floor: float | None = None
    like: Change | None = None
    exact: bool = True
    neutral_like: Change | None = None
    releases: tuple[str, ...] = ("1.2", "1.3", "2.0")


SKIP = {"double_layers": "1", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0}
WINDOWS = {"context_schedule": "standard_static", "dim": 2, "fuse_method": "pyramid"}
CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
NEVER = CACHE | {"reuse_threshold": 0.0}
LORA = with_lora(1.0)
SECOND_ROW = batch_row(1)

FEATURES: dict[str, Feature] = {
    "EasyCache": Feature(
        ("EasyCache",), long("EasyCache", **NEVER), long("EasyCache", **CACHE), 34, like=long_plain,
        neutral_like=long_plain,
    ),
    "LazyCache": Feature(
        ("LazyCache",), long("LazyCache", **NEVER), long("LazyCache", **CACHE), 28, like=long_plain,
        neutral_like=long_plain,
    ),
    "context windows": Feature(
        ("ContextWindowsManual",), on_model("ContextWindowsManual", context_length=5, context_overlap=1, **WINDOWS),
        on_model("ContextWindowsManual", context_length=4, context_overlap=2, **WINDOWS), 27,
    ),
    "skip layer guidance": Feature(
        ("SkipLayerGuidanceDiT",), on_model("SkipLayerGuidanceDiT", **SKIP, scale=0.0),
        on_model("SkipLayerGuidanceDiT", **SKIP, scale=0.5), 30,
    ),
    "skip layer guidance, simple": Feature(
        ("SkipLayerGuidanceDiTSimple",),
        on_model("SkipLayerGuidanceDiTSimple", **SKIP | {"start_percent": 0.98, "end_percent": 0.99}),
        on_model("SkipLayerGuidanceDiTSimple", **SKIP), 15,
    ),
    "normalized attention guidance": Feature(
        ("NAGuidance",), on_model("NAGuidance", nag_alpha=0.0), on_model("NAGuidance", nag_scale=2.0, nag_alpha=0.1),
        32, releases=("1.2", "1.3"),
    ),
    # Where text and pictures share one attention, core gives the negative prompt's row what the prompt's row saw.
    "normalized attention guidance, one attention": Feature(
        ("NAGuidance",), None, on_model("NAGuidance", nag_scale=2.0, nag_alpha=0.1), 12, releases=("2.0",)
    ),
    "adaptive projected guidance": Feature(
        # Core adds the guidance once more: at cfg it gives what plain guidance gives at cfg + 1.
        ("APG",), on_model("APG", eta=1.0, norm_threshold=0.0), on_model("APG", norm_threshold=15.0), 18,
        neutral_like=one_more_guidance, exact=False,
    ),
    "CFG zero star": Feature(("CFGZeroStar",), None, on_model("CFGZeroStar"), 18),
    "CFG norm": Feature(("CFGNorm",), None, on_model("CFGNorm"), 15),
    "tangential damping": Feature(("TCFG",), None, on_model("TCFG"), 19),
    "rescale CFG": Feature(
        ("RescaleCFG",), on_model("RescaleCFG", multiplier=0.0), on_model("RescaleCFG", multiplier=0.7), 17, exact=False
    ),
    "renorm CFG": Feature(
        ("RenormCFG",), on_model("RenormCFG", renorm_cfg=0.0), on_model("RenormCFG", renorm_cfg=1.0), 15, exact=False
    ),
    "LoRA": Feature(("LoraModelLoader",), with_lora(0.0), LORA, 28),
    "LoRA, bypass": Feature(("LoraModelLoader",), with_lora(0.0, True), with_lora(1.0, True), like=LORA),
    "LoRA hook": Feature(("ConditioningSetProperties",), with_hook(0.0), with_hook(1.0), like=LORA),
    "LoRA hook, timed": Feature(
        ("CreateHookKeyframe", "SetHookKeyframes"), with_hook(0.0, 0.5), with_hook(1.0, 0.5), 32
    ),
    "merge": Feature(
        ("ModelMergeSimple",), merged("ModelMergeSimple", 0.2, ratio=1.0), merged("ModelMergeSimple", 0.2, ratio=0.5),
        like=moved,
    ),
    "merge, blocks": Feature(
        ("ModelMergeBlocks",), merged("ModelMergeBlocks", 0.2, input=1.0, middle=1.0, out=1.0),
        merged("ModelMergeBlocks", 0.2, input=0.5, middle=0.5, out=0.5), like=moved,
    ),
    "merge, add and subtract": Feature(
        ("ModelMergeAdd", "ModelMergeSubtract"), added_and_taken_away, sum_less_one, like=moved, exact=False
    ),
    "differential diffusion": Feature(
        ("DifferentialDiffusion", "SetLatentNoiseMask", "SolidMask"), noise_mask(1.0, "DifferentialDiffusion"),
        noise_mask(0.5, "DifferentialDiffusion"), like=noise_mask(0.5), releases=("1.2", "1.3"),
    ),
    # 2.0 has one time for all: what is masked by half waits until half of the noise is left.
    "differential diffusion, one time": Feature(
        ("DifferentialDiffusion", "SetLatentNoiseMask", "SolidMask"), noise_mask(1.0, "DifferentialDiffusion"),
        noise_mask(0.5, "DifferentialDiffusion"), like=from_half_noise, releases=("2.0",),
    ),
    "MultiGPU": Feature(("MultiGPU_WorkUnits",), on_model("MultiGPU_WorkUnits", max_gpus=2)),
    "another shift": Feature(
        ("ModelSamplingSD3",), own_shift, on_model("ModelSamplingSD3", shift=0.5), 20, exact=False
    ),
    "compute dtype": Feature(("ModelComputeDtype",), computed_in(other=False), computed_in(other=True), 38),
    "prompts combined": Feature(
        ("ConditioningCombine",), same_prompt_twice("ConditioningCombine", "conditioning_1", "conditioning_2"),
        exact=False,
    ),
    "prompts averaged": Feature(("ConditioningAverage",), averaged(1.0), averaged(0.9), 15, exact=False),
    "prompts timed": Feature(
        ("ConditioningSetTimestepRange",), on_positive("ConditioningSetTimestepRange", start=0.0, end=1.0),
        other_words_late, 20,
    ),
    "prompts in halves": Feature(("ConditioningSetTimestepRange",), in_halves, exact=False),
    "prompts masked": Feature(("ConditioningSetMask",), masked_prompt(0.5), two_prompts_side_by_side, 10),
    "batch": Feature(("RepeatLatentBatch",), batch_row(0), SECOND_ROW, like=row_alone, exact=False),
    "row of a batch": Feature(("LatentFromBatch",), None, row_alone, like=SECOND_ROW),
    "custom sampler": Feature(
        ("SamplerCustomAdvanced", "CFGGuider", "BasicScheduler", "KSamplerSelect", "RandomNoise"), custom
    ),
    "sigmas split": Feature(("SplitSigmas", "DisableNoise"), lambda take: custom(take, 2), exact=False),
    "advanced sampler": Feature(
        ("KSamplerAdvanced",), advanced(0, 10000), advanced(0, 3, 10000), like=plain
    ),
    "dual guidance": Feature(("DualCFGGuider",), dual_guidance, exact=False),
    "our sampler": Feature(("KSampler",), our_sampler(), exact=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(executor: Executor) -> Callable[..., Take]:
    """A trained model as it is stored, with its prompts; kept for the module."""
    executor.validate({"1": {"class_type": "EasyCache", "inputs": {}}})  # has core's extra nodes read
    known: dict[tuple[str, ...], Take] = {}

    def load(*wanted: str) -> Take:
        if wanted not in known:
            known[wanted] = load_take(*wanted)
        return known[wanted]

    return load


@pytest.fixture(scope="module")
def studio(loaded: Callable[..., Take], request: pytest.FixtureRequest) -> Studio:
    version, dtype = request.param.split()
    take = loaded(version).patched("ModelComputeDtype", dtype=dtype)
    return Studio(replace(take, dtype=dtype))


def available(names: tuple[str, ...]) -> bool:
    """Whether this ComfyUI has these nodes."""
    import nodes

    return all(name in nodes.NODE_CLASS_MAPPINGS for name in names)


STUDIOS = ("1.3 fp32", "1.3 bf16", "1.2 fp32", "1.2 bf16", "2.0 fp32")


@pytest.mark.parametrize(
    ("studio", "name"),
    [
        (studio, name)
        for studio in STUDIOS
        for name, feature in FEATURES.items()
        if studio.split()[0] in of_shipped(*feature.releases)
    ],
    indirect=["studio"],
)
def test_a_feature_gives_the_right_clip(studio: Studio, name: str) -> None:
    feature, rounded = FEATURES[name], ROUNDED[studio.take.dtype]
    if not available(feature.nodes):
        pytest.skip("this ComfyUI has no such node")
    base = studio.shot(plain)
    assert base.isfinite().all() and base.std() > 0.3
    if feature.neutral is not None:
        want = studio.shot(feature.neutral_like or plain)
        reached = psnr(studio.shot(feature.neutral), want)
        assert reached == SAME if feature.exact else reached >= rounded, f"neutral: {reached:.1f} dB"
    if feature.working is not None:
        made = studio.shot(feature.working)
        reached = psnr(made, studio.shot(feature.like or plain))
        floor = rounded if feature.floor is None else feature.floor
        assert reached >= floor, f"working: {reached:.1f} dB of at least {floor:g}"
        if feature.floor is not None:
            assert reached < SAME, "it does nothing"


# Functions in ComfyUI's guidance, times and masks of prompts count in Open-Sora Sampler as in KSampler.
IN_OUR_SAMPLER = (
    "context windows", "skip layer guidance", "skip layer guidance, simple", "normalized attention guidance",
    "adaptive projected guidance", "CFG zero star", "CFG norm", "tangential damping", "rescale CFG", "renorm CFG",
    "LoRA", "LoRA hook, timed", "prompts timed", "prompts masked",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_OUR_SAMPLER)
def test_our_sampler_follows_it_as_cores_does(loaded: Callable[..., Take], name: str) -> None:
    feature, take = FEATURES[name], loaded("1.3")
    if not available(feature.nodes) or feature.working is None:
        pytest.skip("this ComfyUI has no such node")
    made, want = Studio(take).shot(our_sampler(feature.working)), Studio(take).shot(feature.working)
    assert psnr(made, want) >= ROUNDED["fp32"]


@pytest.mark.parametrize("version", of_shipped("1.3", "1.2", "2.0"))
def test_a_cached_run_shows_the_same_pictures(loaded: Callable[..., Take], version: str) -> None:
    from opensora.opensora_models.native.vae.vae import load_vae

    studio = Studio(loaded(version))
    with torch.inference_mode():
        vae = load_vae(DEMO / "vae" / f"opensora-tiny-vae-v{version}.safetensors")
        full, easy, lazy = (
            vae.decode(studio.shot(change))
            for change in (long_plain, FEATURES["EasyCache"].working, FEATURES["LazyCache"].working)
        )
    assert SAME > psnr(easy, full) >= (33 if version == "2.0" else 40)  # measured: 34.3 in 2.0
    assert SAME > psnr(lazy, full) >= 26


def test_easycache_fits_oscillating_guidance(loaded: Callable[..., Take]) -> None:
    take, preset = replace(loaded("1.3"), steps=16), "1.3 text to video"
    full = our_sampler(guidance=preset)(take)
    cached = our_sampler(on_model("EasyCache", **CACHE), preset)(take)
    assert isinstance(full, torch.Tensor) and isinstance(cached, torch.Tensor)
    assert SAME > psnr(cached, full) >= 30


@pytest.mark.parametrize(
    ("weight_dtype", "floor"), [("fp32", SAME), ("fp16", SAME), ("bf16", 45), ("fp8_e4m3fn", 38), ("fp8_e5m2", 32)]
)
@pytest.mark.parametrize("version", of_shipped("1.3", "1.2", "2.0"))
def test_stored_in_fewer_bits_it_draws_the_same(
    loaded: Callable[..., Take], version: str, weight_dtype: str, floor: float
) -> None:
    made = Studio(loaded(version, weight_dtype)).shot(plain)
    assert psnr(made, Studio(loaded(version)).shot(plain)) >= floor


@pytest.mark.slow
def test_every_sampler_of_core_draws_the_clip(loaded: Callable[..., Take]) -> None:
    """Against many small steps; those that are made for no guidance without it."""
    import comfy.samplers

    take = replace(loaded("1.3"), steps=10)
    fine = {cfg: replace(take, steps=40, cfg=cfg).shoot() for cfg in (1.0, take.cfg)}
    for sampler in comfy.samplers.KSampler.SAMPLERS:
        cfg = 1.0 if sampler.endswith("cfg_pp") else take.cfg
        reached = psnr(replace(take, sampler=sampler, cfg=cfg).shoot(), fine[cfg])
        assert reached >= 14, f"{sampler}: {reached:.1f} dB"


# What files name besides, and where its result is proved.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "comfy/test_scheduler.py": (
        "ModelSamplingAuraFlow", "ModelSamplingContinuousEDM", "ModelSamplingContinuousV", "ModelSamplingDiscrete",
        "ModelSamplingFlux", "ModelSamplingStableCascade",
    ),
    "comfy/test_core_expectations.py": (
        "FreeU", "FreeU_V2", "HyperTile", "PatchModelAddDownscale", "PerturbedAttentionGuidance",
        "SelfAttentionGuidance", "TomePatchModel",
    ),
    "comfy/test_guidance_over_time.py": ("CurveEditor",),
    "comfy/test_lora.py": ("TrainLoraNode",),
    "browser/test_templates.py": ("LoraLoaderModelOnly",),
    "comfy/test_other_models.py": ("SamplerCustom",),
    "comfy/test_model_interop.py": ("ModelSave", "TorchCompileModel"),
    "comfy/test_model_loading.py": ("UNETLoader", "CheckpointLoaderSimple"),
    "comfy/test_vae_nodes.py": (
        "VAEDecode", "VAEDecodeTiled", "VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint", "VAELoader", "VAESave",
        "CheckpointSave",
    ),
    "comfy/test_text_encoder_files.py": ("CLIPLoader", "CLIPSave"),
    "comfy/test_text_nodes.py": ("CLIPTextEncode",),
    "comfy/test_text_reaching.py": ("DualCLIPLoader",),
    "comfy/test_image_stage_server.py": ("BasicGuider", "CLIPTextEncodeFlux"),
    "comfy/test_prompt_writing.py": ("TextGenerate",),
    "comfy/test_sampling_server.py": ("LatentBatch", "MaskComposite"),
}  # fmt: skip
# Nodes that bring pictures, numbers and words in and out, or belong to other models.
AROUND = {
    "EmptyHunyuanLatentVideo", "EmptyImage", "EmptyLTXVLatentVideo", "EmptyLatentImage", "EmptySD3LatentImage",
    "ImageAddNoise", "ImageBatch", "ImageFromBatch", "ImageScale", "LatentCut", "LoadImage", "LoadLatent",
    "LoadVideo", "ManualSigmas", "PreviewAny", "PreviewImage", "PrimitiveInt", "PrimitiveString",
    "PrimitiveStringMultiline", "SaveLatent", "SaveVideo",
}  # fmt: skip
# Words that name a feature without its node, and where it is proved: a feature above, or a file.
WORDS = {
    r"LoRA": "LoRA", r"bypass": "LoRA, bypass", r"Easy ?Cache": "EasyCache", r"Lazy ?Cache": "LazyCache",
    r"[Cc]ontext [Ww]indow": "context windows", r"[Ss]kip.?[Ll]ayer": "skip layer guidance",
    r"\bNAG\b": "normalized attention guidance", r"\bAPG\b": "adaptive projected guidance",
    r"[Mm]erg(?:e|ing)": "merge", r"Torch Compile|torch\.compile": "comfy/test_model_interop.py",
    r"[Hh]ooks?\b": "LoRA hook", r"[Dd]ifferential [Dd]iffusion": "differential diffusion",
    r"[Mm]ulti-?GPU": "MultiGPU", r"Train ?L[oO]RA": "comfy/test_lora.py",
    r"tiled decod|\(Tiled\)": "comfy/test_vae_nodes.py", r"[Pp]reviews?\b": "comfy/test_model_server.py",
    r"\bfp8": "comfy/test_model_loading.py", r"memory streaming": "comfy/test_model_interop.py",
    r"Split ?Sigmas": "sigmas split", r"Rescale ?CFG": "rescale CFG",
}  # fmt: skip
PAGES = (PACK_ROOT / "README.md", *sorted((PACK_ROOT / "js" / "docs").glob("*.md")))
TESTS = tuple(path for path in sorted((PACK_ROOT / "tests").rglob("*.py")) if path != Path(__file__).resolve())


def named_nodes(names: dict[str, set[str]]) -> dict[str, str]:
    """Nodes of core that a page or a test names, and one place; ``names`` are id and title of each."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
    tests = {path.name: path.read_text(encoding="utf-8") for path in TESTS}
    found: dict[str, str] = {}
    for node, titles in names.items():
        in_words = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, sorted(titles))) + r")(?![\w])")
        quoted = re.compile(f"[\"']{re.escape(node)}[\"']")
        places = [name for name, text in pages.items() if in_words.search(text)]
        places += [name for name, text in tests.items() if quoted.search(text)]
        if places:
            found[node] = places[0]
    return found


def test_every_feature_that_is_named_is_proved(loaded: Callable[..., Take]) -> None:
    import nodes

    names = {
        node: {node, nodes.NODE_DISPLAY_NAME_MAPPINGS.get(node) or node}
        for node in nodes.NODE_CLASS_MAPPINGS
        if not node.startswith("OSora")
    }
    proved = {node for feature in FEATURES.values() for node in feature.nodes} | AROUND
    proved |= {node for those in ELSEWHERE.values() for node in those}
    found = named_nodes(names)
    assert len(found) > 40 and "EasyCache" in found
    missing = {node: place for node, place in found.items() if node not in proved}
    assert not missing, f"named without a proof: {missing}"


def test_every_word_for_a_feature_leads_to_its_proof() -> None:
    files = {str(path.relative_to(PACK_ROOT / "tests").as_posix()) for path in TESTS}
    assert set(ELSEWHERE) <= files
    for word, place in WORDS.items():
        assert place in FEATURES or place in files, word
