"""The text nodes in ComfyUI: one encoder through every door, exact lengths, and refusals a person understands."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = pytest.mark.comfy

T5_FILE = "random-t5.safetensors"
LONG = "word " * 400
Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loaders(version: str = "1.2", precision: str = "default") -> Prompt:
    return {
        "model": node(
            "OSoraModelLoader",
            model_name=f"random-v{version}.safetensors",
            weight_dtype="default",
            rounding="accurate",
            window=0,
            spatial_rotary="automatic",
        ),
        "clip": node("OSoraTextEncoderLoader", text_encoder_name=T5_FILE, precision=precision, device="default"),
    }


def encode(prompt: str, negative: str = "", clean: bool = True, **more: Any) -> dict[str, Any]:
    return (
        node(
            "OSoraTextEncode",
            clip=["clip", 0],
            prompt=prompt,
            negative_prompt=negative,
            clean=clean,
            model=["model", 0],
        )
        | more
    )


def run(executor: Executor, prompt: str, negative: str = "", **settings: Any) -> tuple[Any, Any, str]:
    graph = loaders() | {"text": encode(prompt, negative, **settings)}
    return tuple(executor.run(graph, ("text", 0), ("text", 1), ("text", 2)))


@pytest.fixture(scope="module")
def clip(comfy: Path, tiny_models: Path) -> Any:
    """The tiny encoder, loaded once."""
    return tiny_clip(comfy, tiny_models)


def tiny_clip(comfy: Path, tiny_models: Path, **settings: Any) -> Any:
    from opensora.opensora_models.native.text.clip import load_text_encoder

    return load_text_encoder(tiny_models / "text_encoders" / T5_FILE, **settings)


def test_positive_is_unpadded_and_cleaned(executor: Executor) -> None:
    written = "<b>A  CAT</b>  https://example.com (very cute:1.3)"
    positive, _, report = run(executor, written)
    cleaned, _, _ = run(executor, "a cat very cute:1.3", clean=False)
    ((tensor, extra),) = positive
    assert tensor.dtype == torch.float32 and tensor.shape[0] == 1 and tensor.shape[2] == 64
    assert extra["pooled_output"] is None
    assert torch.equal(tensor, cleaned[0][0])
    first, *told = report.splitlines()
    assert first == f"prompt: {tensor.shape[1]} of 300 tokens: “a cat very cute:1.3”"
    links, weights = sorted(told, key=lambda line: "weights" in line)
    assert "https://example.com" in links and "knows no weights" in weights


def test_empty_negative_is_the_learned_text_of_the_prompts_length(executor: Executor) -> None:
    positive, negative, _ = run(executor, "a small dog runs")
    import folder_paths
    from safetensors.torch import load_file

    weights = load_file(folder_paths.get_full_path("diffusion_models", "random-v1.2.safetensors"))
    null = weights["y_embedder.y_embedding"].float()
    length = positive[0][0].shape[1]
    assert torch.allclose(negative[0][0], null[None, :length], atol=1e-2, rtol=1e-2)
    assert negative[0][0].shape == positive[0][0].shape


def test_written_negative_has_its_own_length(executor: Executor) -> None:
    positive, negative, report = run(executor, "a small dog runs over a meadow", "blurry")
    assert negative[0][0].shape[1] < positive[0][0].shape[1]
    assert "negative prompt: " in report


def test_empty_prompt_is_the_end_token(executor: Executor) -> None:
    positive, negative, report = run(executor, "")
    assert positive[0][0].shape == negative[0][0].shape == (1, 1, 64)
    assert "1 of 300 tokens" in report


def test_segments_are_marked(executor: Executor) -> None:
    from opensora.opensora_models.text.segments import conditioning_of_segment

    positive, negative, _ = run(executor, "|0| a forest |2| the wide open sea")
    assert [entry[1]["opensora_segment"] for entry in positive] == [0, 2]
    assert [n[0].shape for n in negative] == [p[0].shape for p in positive]
    assert conditioning_of_segment(positive, 1) == [positive[0]]
    assert conditioning_of_segment(negative, 7) == [negative[1]]


def test_long_prompt_is_cut_and_the_words_are_named(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="opensora"):
        positive, _, report = run(executor, "sea " * 299 + "lighthouse storm")
    assert positive[0][0].shape[1] == 300
    assert "lighthouse storm" in report.splitlines()[-1]
    assert any("lighthouse storm" in message for message in caplog.messages)


def test_ordinary_encode_node_has_the_limit_too(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    graph = loaders() | {"text": node("CLIPTextEncode", clip=["clip", 0], text=LONG)}
    with caplog.at_level(logging.WARNING, logger="opensora"):
        (conditioning,) = executor.run(graph, ("text", 0))
    assert conditioning[0][0].shape == (1, 300, 64)
    assert any("longer than the 300" in message for message in caplog.messages)


def test_the_same_text_through_both_encode_nodes(executor: Executor) -> None:
    graph = loaders() | {
        "ours": encode("a red kite", clean=False),
        "core": node("CLIPTextEncode", clip=["clip", 0], text="a red kite"),
    }
    ours, core = executor.run(graph, ("ours", 0), ("core", 0))
    assert torch.equal(ours[0][0], core[0][0])


@pytest.mark.parametrize(
    "text", ["(cat:1.3)", "a \\(cat\\)", "[[x]]", "{curly}", "</s> x", "embedding:", "a embedding:cat, embedding: b"]
)
def test_uncleaned_text_is_literal(clip: Any, text: str) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    ids = clip.tokenizer.clip_t5xxl.tokenizer(text)["input_ids"]
    ((tensor, _),) = encode_prompt(clip, text, clean=False).conditioning
    assert torch.equal(tensor, clip.encode_from_tokens({"t5xxl": [[(token, 1.0) for token in ids]]}))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a</s>b", [3, 9, 1, 115, 1]),
        ("</s>a", [1, 9, 1]),
        ("a</s> b", [3, 9, 1, 3, 115, 1]),
        ("a<pad>", [3, 9, 0, 1]),
        ("a<unk>b", [3, 9, 2, 115, 1]),
        ("a<extra_id_0>b", [3, 9, 32099, 115, 1]),
    ],
)
def test_names_of_special_tokens_are_those_tokens(clip: Any, text: str, ids: list[int]) -> None:
    """As the original's tokenizer has them, through Text Encode and through core's CLIP Text Encode."""
    from opensora.opensora_models.native.text.encoding import encode_prompt

    assert [pair[0] for pair in clip.tokenize(text)["t5xxl"][0]] == ids
    wanted = clip.encode_from_tokens({"t5xxl": [[(token, 1.0) for token in ids]]})
    ((tensor, _),) = encode_prompt(clip, text, clean=False).conditioning
    assert torch.equal(tensor, wanted)
    encoded = encode_prompt(clip, f"{text} " + "word " * 400, clean=False)
    assert encoded.conditioning[0][0].shape[1] == 300 and "longer than the 300" in encoded.report


def test_half_characters_are_read_as_unreadable_ones(clip: Any) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    half, unreadable = (encode_prompt(clip, f"a {sign} b", clean=False) for sign in ("\ud800", "\ufffd"))
    assert torch.equal(half.conditioning[0][0], unreadable.conditioning[0][0])
    pair, smile = (encode_prompt(clip, text, clean=False) for text in ("\ud83d\ude00", "😀"))
    assert torch.equal(pair.conditioning[0][0], smile.conditioning[0][0])


@pytest.mark.parametrize(
    "text", ["猫" * 10_000, "😀" * 10_000, "<b>" * 3_400, "a" * 10_000, "https://x.com/ " * 700, "\x00\ud800\uffff"]
)
def test_any_text_is_encoded(clip: Any, text: str) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    ((tensor, _),) = encode_prompt(clip, text).conditioning
    assert 1 <= tensor.shape[1] <= 300 and bool(tensor.isfinite().all())


def test_padding_requested_by_other_nodes_is_left_away(clip: Any) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    padded = clip.clone()
    padded.set_tokenizer_option("t5xxl_min_length", 128)
    plain, padded = (encode_prompt(c, "a cat").conditioning[0][0] for c in (clip, padded))
    assert torch.equal(plain, padded)


def test_core_classes_give_the_same(clip: Any, tiny_models: Path) -> None:
    """What Load CLIP with type pixart makes of a file of this layout."""
    import comfy.sd
    import comfy.supported_models_base
    from comfy.text_encoders import pixart_t5
    from safetensors.torch import load_file

    from opensora.opensora_models.native.text.encoding import check_clip, encode_prompt
    from opensora.opensora_models.text.t5_config import t5_config

    weights = load_file(tiny_models / "text_encoders" / T5_FILE)
    config = t5_config({name: tuple(w.shape) for name, w in weights.items()}, T5_FILE)
    core = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(pixart_t5.PixArtTokenizer, pixart_t5.pixart_te(torch.float16)),
        state_dict=[weights],
        model_options={"t5xxl_model_config": config.as_options()},
    )
    check_clip(core)
    for text in ("a cat", LONG):
        a, b = (encode_prompt(encoder, text).conditioning[0][0] for encoder in (core, clip))
        assert torch.equal(a, b)


def test_precision_changes_weights_not_activations(comfy: Path, tiny_models: Path) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    clips = {name: tiny_clip(comfy, tiny_models, precision=name) for name in ("default", "fp32", "bf16")}
    out = {name: encode_prompt(clip, "a cat on a mat").conditioning[0][0] for name, clip in clips.items()}
    assert all(tensor.dtype == torch.float32 for tensor in out.values())
    torch.testing.assert_close(out["default"], out["fp32"], atol=1e-5, rtol=1e-5)
    drift = float((out["bf16"] - out["fp32"]).norm() / out["fp32"].norm())
    assert 1e-4 < drift < 0.05


def test_copies_can_be_made_again(comfy: Path, tiny_models: Path) -> None:
    clip = tiny_clip(comfy, tiny_models, precision="fp32")
    make, settings = clip.patcher.cached_patcher_init
    copy = make(*settings, disable_dynamic=True)
    for name, weight in clip.patcher.model.state_dict().items():
        assert torch.equal(weight, copy.model.state_dict()[name])


def test_another_clip_is_refused_in_one_sentence(executor: Executor) -> None:
    from opensora.opensora_models.native.text.encoding import check_clip

    class Other:
        def __init__(self, names: tuple[str, ...]) -> None:
            self.names = names

        def tokenize(self, text: str) -> dict[str, list[Any]]:
            return {name: [[(1, 1.0)]] for name in self.names}

    for names, title in (
        (("l",), "CLIP-L"),
        (("umt5xxl",), "umT5"),
        (("qwen25_7b",), "qwen"),
        (("g", "l", "t5xxl"), "CLIP-G"),
    ):
        with pytest.raises(ValueError, match=f"The CLIP is .*{title}.*t5xxl_fp16.safetensors"):
            check_clip(Other(names))
    with pytest.raises(ValueError, match="The CLIP is of an unknown kind"):
        check_clip(None)


def test_empty_negative_without_model_is_refused(executor: Executor) -> None:
    from support.comfyui import NodeError

    graph = loaders() | {"text": encode("a cat")}
    del graph["text"]["inputs"]["model"]
    with pytest.raises(NodeError, match="connect MODEL, or write a negative prompt"):
        executor.run(graph, ("text", 0))


def test_wrong_width_is_refused_before_encoding(clip: Any) -> None:
    from opensora.opensora_models.native.text import encoding as text_encoding

    class Config:
        caption_channels = 4096

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoding, "opensora_config", lambda model: Config)
        with pytest.raises(ValueError, match="64 numbers per token, but the MODEL reads 4096"):
            text_encoding.check_clip(clip, object())


def test_empty_negative_node_fits_any_prompt(executor: Executor) -> None:
    graph = loaders("1.3") | {
        "core": node("CLIPTextEncode", clip=["clip", 0], text="a boat"),
        "null": node("OSoraNullText", model=["model", 0], positive=["core", 0]),
        "ours": encode("a boat"),
    }
    null, ours = executor.run(graph, ("null", 0), ("ours", 1))
    assert torch.equal(null[0][0], ours[0][0])


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_ksampler_takes_it_from_either_encode_node(executor: Executor, version: str) -> None:
    def sample(positive: str, negative: list[Any]) -> dict[str, Any]:
        return node(
            "KSampler",
            model=["model", 0],
            positive=[positive, 0],
            negative=negative,
            latent_image=["latent", 0],
            seed=1,
            steps=2,
            cfg=7.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )

    graph = loaders(version) | {
        "latent": node("OSoraEmptyLatent", version=version, height=32, width=32, frames=1, batch_size=1),
        "ours": encode("a red kite", clean=False),
        "core": node("CLIPTextEncode", clip=["clip", 0], text="a red kite"),
        "null": node("OSoraNullText", model=["model", 0], positive=["core", 0]),
        "a": sample("ours", ["ours", 1]),
        "b": sample("core", ["null", 0]),
        "c": sample("core", ["core", 0]),
    }
    a, b, c = (latent["samples"] for latent in executor.run(graph, ("a", 0), ("b", 0), ("c", 0)))
    assert torch.equal(a, b) and bool(a.isfinite().all())
    assert not torch.allclose(a, c)


def test_saved_conditioning_comes_back(executor: Executor) -> None:
    graph = loaders() | {
        "text": encode("|0| a boat |1| a storm", "blurry"),
        "save": node(
            "OSoraSaveConditioning",
            positive=["text", 0],
            negative=["text", 1],
            filename_prefix="conditioning/boat",
            note="test",
        ),
    }
    positive, name = executor.run(graph, ("text", 0), ("save", 0))
    assert name.startswith("conditioning/boat_00001") and name.endswith("[output]")
    loaded, negative = executor.run({"load": node("OSoraLoadConditioning", file=name)}, ("load", 0), ("load", 1))
    for (before, extra), (after, extra_after) in zip(positive, loaded, strict=True):
        assert torch.equal(before, after) and extra == extra_after
    assert len(negative) == 1


def test_a_conditioning_file_elsewhere_is_refused(executor: Executor) -> None:
    for name in ("../secret.conditioning.safetensors [output]", "gone.conditioning.safetensors [input]"):
        objection = executor.validate({"load": node("OSoraLoadConditioning", file=name)} | collect("load"))
        assert objection and "is not among the saved conditionings" in objection


def collect(of: str) -> Prompt:
    from support.comfyui import COLLECTOR

    return {"end": node(COLLECTOR, value=[of, 0], name="x")}


def test_prompt_nodes_feed_one_another(executor: Executor) -> None:
    graph = {
        "lines": node("OSoraPromptSegments", lines="a forest\n\nthe sea"),
        "built": node(
            "OSoraPromptBuilder",
            prompt=["lines", 0],
            version="1.3",
            aesthetic="6.5",
            motion="fair",
            camera_motion="pan left",
        ),
        "request": node("OSoraPromptRequest", task="refine", prompt="a cat"),
    }
    lines, built, request = executor.run(graph, ("lines", 0), ("built", 0), ("request", 0))
    assert lines == "|0|a forest|2|the sea"
    words = " The aesthetic score is excellent. The motion strength is fair. camera motion: pan left."
    assert built == f"|0|a forest{words}|2|the sea{words}"
    assert request.endswith("Description: a cat")


def test_a_word_for_version_12_is_refused_with_a_number(executor: Executor) -> None:
    built = node("OSoraPromptBuilder", prompt="x", version="1.2", aesthetic="excelent", motion="", camera_motion="off")
    objection = executor.validate({"built": built} | collect("built"))
    assert objection and "the number for 'excellent' is 6.5" in objection


def test_an_ending_that_another_release_was_trained_with_is_told(clip: Any) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    said = encode_both(clip, "a cat. 24 FPS. 4 motion score.", "a dog", None).report
    assert "as texts of Open-Sora 2.0 do, which Open-Sora 1.2 was not trained with; connect the MODEL" in said
    assert "not trained with" not in encode_both(clip, "a cat. motion score: 4.", "a dog", None).report
