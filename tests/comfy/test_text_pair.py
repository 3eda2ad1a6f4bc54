"""T5 and CLIP-L together, as Open-Sora 2.0 reads them: files, lengths, padding, negatives, and refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support import random_weights

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

WIDTH, POOLED = random_weights.CAPTION_CHANNELS, random_weights.CLIP_WIDTH
LONG = "word " * 900


def encoders(tiny_models: Path, **settings: Any) -> Any:
    from opensora.opensora_models.native.text.clip import load_text_encoder

    folder = tiny_models / "text_encoders"
    return load_text_encoder(
        folder / "random-t5.safetensors", **{"clip_l": folder / "random-clip-l.safetensors", **settings}
    )


@pytest.fixture(scope="module")
def pair(comfy: Path, tiny_models: Path) -> Any:
    """Both tiny encoders, loaded once."""
    return encoders(tiny_models)


@pytest.fixture(scope="module")
def alone(comfy: Path, tiny_models: Path) -> Any:
    """The tiny T5 without CLIP-L."""
    return encoders(tiny_models, clip_l=None)


@pytest.fixture(scope="module")
def model(comfy: Path, tiny_models: Path) -> Any:
    """The tiny MODEL of 2.0."""
    from opensora.opensora_models.native.model.loading import load_model

    return load_model(tiny_models / "diffusion_models" / "random-v2.0.safetensors")


def ids(clip: Any, t5: list[int], clip_l: list[int]) -> tuple[Tensor, Tensor]:
    """States of these ids straight from the two networks, without a mask."""
    parts = clip.cond_stage_model
    states = parts.t5xxl.transformer(torch.tensor([t5]), None, dtype=torch.float32)[0]
    return states, parts.clip_l.transformer(torch.tensor([clip_l]))[3]


def test_text_is_padded_without_a_mask_and_clip_pools(pair: Any, model: Any) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    encoded = encode_both(pair, "A Cat (very cute:1.3)", "", model)
    t5, clip = pair.tokenizer.t5xxl.tokenizer, pair.tokenizer.clip_l.tokenizer
    for text, entries in (("A Cat (very cute:1.3)", encoded.positive), ("", encoded.negative)):
        ((states, extra),) = entries
        t5_ids, clip_ids = t5(text)["input_ids"], clip(text)["input_ids"]
        want = ids(pair, t5_ids + [0] * (512 - len(t5_ids)), clip_ids + [49407] * (77 - len(clip_ids)))
        assert states.shape == (1, 512, WIDTH) and extra["pooled_output"].shape == (1, POOLED)
        torch.testing.assert_close(states, want[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(extra["pooled_output"], want[1], atol=1e-5, rtol=1e-5)
        assert "attention_mask" not in extra and extra["opensora_text"] == "2.0"
    first, weights, hint, *_ = encoded.report.splitlines()
    assert first.endswith("“A Cat (very cute:1.3)”"), "as written, nothing cleaned"
    assert "Open-Sora knows no weights" in weights and encoded.warnings == (weights,)
    assert "Open-Sora Prompt Builder adds both" in hint
    worded = encode_both(pair, "|0| a. 24 FPS. |1| b. 4 motion score.", "", model)
    assert "Prompt Builder" not in worded.report


def test_recorded_states_come_out_of_the_node(comfy: Path) -> None:
    """The original's T5 and CLIP on a prompt and the empty text, with its tolerances."""
    from golden.families.text_v2 import both_encoders
    from golden.runner import load_case
    from opensora.nodes.text import TextEncode
    from support.pack import PACK_ROOT

    case = load_case(PACK_ROOT / "tests" / "golden" / "cases" / "v2" / "text_hfembedder.safetensors")
    prompt, negative = case.config["t5_prompts"]
    assert case.config["clip_prompts"][:2] == [prompt, negative]
    given = TextEncode.execute(both_encoders(case), prompt, negative).result
    for row, ((states, extra),) in enumerate(given[:2]):
        limits, pooled = case.info["tolerances"], case.info["tolerances"]["per_tensor"]["out.clip_pooled"]
        torch.testing.assert_close(states[0], case.expected["t5_hidden"][row], atol=limits["atol"], rtol=limits["rtol"])
        torch.testing.assert_close(extra["pooled_output"][0], case.expected["clip_pooled"][row], **pooled)


def test_padding_takes_part(pair: Any, model: Any) -> None:
    """A mask would give the states of the text alone: that is another input for the network."""
    from opensora.opensora_models.native.text.encoding import encode_prompt

    release = model.model.release
    short, whole = (
        encode_prompt(pair, "a cat", limit=n, release=release).conditioning[0][0] for n in (16, release.text.limit)
    )
    assert short.shape[1] == 16 and float((short[:, :3] - whole[:, :3]).abs().max()) > 0.05


def test_cut_words_are_told_and_the_end_token_stays(pair: Any, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    with caplog.at_level(logging.WARNING, logger="opensora"):
        encoded = encode_both(pair, LONG + "lighthouse", "blurry", model)
    t5, clip = (each("word " * 900)["input_ids"] for each in (pair.tokenizer.t5xxl.tokenizer, _clip(pair)))
    want = ids(pair, [*t5[:511], 1], [*clip[:76], 49407])
    ((states, extra),) = encoded.positive
    torch.testing.assert_close(states, want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(extra["pooled_output"], want[1], atol=1e-5, rtol=1e-5)
    assert "longer than the 512" in encoded.report and "longer than the 512" in caplog.text
    assert "512 of 512 tokens, the first 77 of 9" in encoded.report and "3 of 77 by CLIP-L" in encoded.report


def _clip(pair: Any) -> Any:
    return pair.tokenizer.clip_l.tokenizer


def test_a_model_says_how_many_tokens_it_was_trained_with(
    pair: Any, tiny_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the settings of its file; small models are trained with few."""
    from opensora.opensora_models.native.model.loading import load_model
    from opensora.opensora_models.native.text.encoding import encode_both

    weights = load_file(tiny_models / "diffusion_models" / "random-v2.0.safetensors")
    save_file(weights, tmp_path / "few.safetensors", metadata={"opensora.config": '{"text_tokens": 24}'})
    few = load_model(tmp_path / "few.safetensors")
    encoded = encode_both(pair, "a red kite", "word " * 40, few)
    assert encoded.positive[0][0].shape == encoded.negative[0][0].shape == (1, 24, WIDTH)
    assert "4 of 24 tokens" in encoded.report and "longer than the 24" in encoded.report
    with caplog.at_level(logging.WARNING, logger="opensora"):
        few.model.extra_conds(
            noise=torch.zeros(1, 16, 1, 4, 4), device=torch.device("cpu"), cross_attn=encoded.positive[0][0],
            pooled_output=encoded.positive[0][1]["pooled_output"],
        )  # fmt: skip
    assert "was trained with" not in caplog.text


def test_segments_are_padded_each(pair: Any, model: Any) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    encoded = encode_both(pair, "|0| a forest |2| the sea", "", model)
    assert [extra["opensora_segment"] for _, extra in encoded.positive] == [0, 2]
    assert {tuple(states.shape) for states, _ in (*encoded.positive, *encoded.negative)} == {(1, 512, WIDTH)}


@pytest.mark.parametrize("text", ["猫" * 3000, "😀", "a" * 10_000, "\x00\ud800\uffff", "<|endoftext|> x </s> y", ""])
def test_any_text_is_encoded(pair: Any, model: Any, text: str) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    encoded = encode_both(pair, text, text, model)
    for states, extra in (*encoded.positive, *encoded.negative):
        assert states.shape == (1, 512, WIDTH) and bool(states.isfinite().all())
        assert bool(extra["pooled_output"].isfinite().all())


def test_without_model_the_clip_decides_and_says_so(pair: Any, alone: Any, caplog: pytest.LogCaptureFixture) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    with caplog.at_level(logging.INFO, logger="opensora"):
        two = encode_both(pair, "a cat", "blurry", None).positive[0]
    assert two[0].shape[1] == 512 and "encoded for Open-Sora 2.0" in caplog.text
    one = encode_both(alone, "a cat", "blurry", None).positive[0]
    assert one[0].shape[1] == 4 and one[1]["pooled_output"] is None and "opensora_text" not in one[1]


def test_a_1x_model_reads_the_pair_as_before_and_says_so(
    pair: Any, alone: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.opensora_models.native.text.encoding import encode_both

    loader = {"class_type": "OSoraModelLoader", "inputs": {
        "model_name": "random-v1.2.safetensors", "weight_dtype": "default", "rounding": "accurate", "window": 0,
        "spatial_rotary": "automatic",
    }}  # fmt: skip
    (stdit,) = executor.run({"model": loader}, ("model", 0))
    caplog.set_level(logging.INFO, "opensora")
    without = encode_both(alone, "a cat", "", stdit)
    assert "CLIP-L" not in caplog.text
    with_clip = encode_both(pair, "a cat", "", stdit)
    assert caplog.text.count("Open-Sora 1.2 reads T5 alone; CLIP-L in the CLIP is not used.") == 1
    assert torch.equal(with_clip.positive[0][0], without.positive[0][0])
    assert torch.equal(with_clip.negative[0][0], without.negative[0][0])


def test_core_nodes_give_the_padded_form_too(pair: Any, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    ((states, extra),) = encode_prompt(pair, "a red kite", limit=512, release=model.model.release).conditioning
    core, pooled = pair.encode_from_tokens(pair.tokenize("a red kite"), return_pooled=True)
    torch.testing.assert_close(core, states, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pooled, extra["pooled_output"], atol=1e-6, rtol=1e-6)
    with caplog.at_level(logging.WARNING, logger="opensora"):
        assert len(pair.tokenize(LONG)["t5xxl"][0]) == 512
    assert "longer than the 512" in caplog.text


def test_cores_own_flux_pair_gives_the_same(pair: Any, model: Any, tiny_models: Path) -> None:
    """What DualCLIPLoader with type flux makes of the same files."""
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.flux as flux

    from opensora.opensora_models.native.text.encoding import encode_both
    from opensora.opensora_models.text import clip_config, t5_config

    t5, clip = (load_file(tiny_models / "text_encoders" / f"random-{name}.safetensors") for name in ("t5", "clip-l"))
    shapes = [{name: tuple(weight.shape) for name, weight in each.items()} for each in (t5, clip)]
    core = comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(flux.FluxTokenizer, flux.flux_clip(torch.float16)),
        state_dict=[t5, clip],
        model_options={
            "t5xxl_model_config": t5_config.t5_config(shapes[0], "t5").as_options(),
            "clip_l_model_config": clip_config.clip_config(shapes[1], "clip").as_options(),
        },
    )
    ours, theirs = (encode_both(clip, LONG, "", model) for clip in (pair, core))
    for mine, other in zip((*ours.positive, *ours.negative), (*theirs.positive, *theirs.negative), strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1]["pooled_output"], other[1]["pooled_output"])


def test_precision_holds_for_both(tiny_models: Path, pair: Any, model: Any) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    def encode(clip: Any) -> tuple[Tensor, Tensor]:
        ((states, extra),) = encode_prompt(clip, "a cat", limit=512, release=model.model.release).conditioning
        return states, extra["pooled_output"]

    half = encode(pair)
    for precision, atol in (("fp32", 1e-5), ("bf16", 0.2)):
        clip = encoders(tiny_models, precision=precision)
        parts = clip.cond_stage_model
        kept = {
            parts.t5xxl.transformer.shared.weight.dtype,
            parts.clip_l.transformer.get_input_embeddings().weight.dtype,
        }
        assert kept == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
        for got, want in zip(encode(clip), half, strict=True):
            torch.testing.assert_close(got, want, atol=atol, rtol=atol)


@pytest.mark.parametrize(("t5", "clip"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp8"), ("fp8", "fp16")])
def test_neither_file_is_rounded_because_of_the_other(
    comfy: Path, tiny_models: Path, tmp_path: Path, t5: str, clip: str
) -> None:
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    for name, precision in (("t5", t5), ("clip-l", clip)):
        weights = load_file(tiny_models / "text_encoders" / f"random-{name}.safetensors")
        save_file({key: each.to(dtypes[precision]) for key, each in weights.items()}, tmp_path / f"{name}.safetensors")
    from opensora.opensora_models.native.text.clip import load_text_encoder

    parts = load_text_encoder(tmp_path / "t5.safetensors", clip_l=tmp_path / "clip-l.safetensors").cond_stage_model
    stored = load_file(tmp_path / "clip-l.safetensors")
    kept = parts.clip_l.transformer.get_input_embeddings().weight
    assert parts.t5xxl.transformer.shared.weight.dtype == dtypes[t5]
    assert torch.equal(kept.float(), stored["text_model.embeddings.token_embedding.weight"].float())


def test_scaled_fp8_beside_clip(pair: Any, model: Any, tiny_models: Path, tmp_path: Path) -> None:
    from opensora.opensora_models.native.text.encoding import encode_prompt

    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in load_file(tiny_models / "text_encoders" / "random-t5.safetensors").items():
        if weight.ndim == 2 and not name.startswith("shared") and "bias" not in name:
            scale = weight.float().abs().max() / 448
            scaled[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
        else:
            scaled[name] = weight
    save_file(scaled, tmp_path / "t5_scaled.safetensors")
    from opensora.opensora_models.native.text.clip import load_text_encoder

    clip_l = tiny_models / "text_encoders" / "random-clip-l.safetensors"
    clip = load_text_encoder(tmp_path / "t5_scaled.safetensors", clip_l=clip_l)
    (got, extra), (want, wanted) = (
        encode_prompt(each, "a cat", limit=512, release=model.model.release).conditioning[0] for each in (clip, pair)
    )
    assert float((got - want).norm() / want.norm()) < 0.3 and not torch.equal(got, want)
    assert torch.equal(extra["pooled_output"], wanted["pooled_output"])


def test_copies_can_be_made_again(pair: Any) -> None:
    make, settings = pair.patcher.cached_patcher_init
    copy = make(*settings, disable_dynamic=True).model.state_dict()
    own = pair.patcher.model.state_dict()
    assert own.keys() == copy.keys() and all(torch.equal(own[name], copy[name]) for name in own)


def clip_weights(tiny_models: Path) -> dict[str, Tensor]:
    return load_file(tiny_models / "text_encoders" / "random-clip-l.safetensors")


def test_forms_of_the_clip_file(comfy: Path, tiny_models: Path, tmp_path: Path) -> None:
    """The whole CLIP of OpenAI, a file without projection, and one inside a larger file."""
    from opensora.opensora_models.native.text.clip_l import read_clip_l

    weights = clip_weights(tiny_models)
    whole = {"vision_model.post_layernorm.weight": torch.ones(4), "logit_scale": torch.ones(1)}
    ids = {"text_model.embeddings.position_ids": torch.arange(77)}
    forms = (
        weights | whole | ids,
        {name: each for name, each in weights.items() if name != "text_projection.weight"},
        {f"text_encoders.clip_l.transformer.{name}": each for name, each in weights.items()} | {"other": torch.ones(1)},
    )
    for number, form in enumerate(forms):
        save_file(form, tmp_path / f"{number}.safetensors")
        read = read_clip_l(tmp_path / f"{number}.safetensors")
        assert read.complete().keys() == weights.keys()
        assert all(torch.equal(read.weights[name], weights[name]) for name in weights if name.startswith("text_model."))


def test_what_no_encoder_needs_stays_on_disk(
    comfy: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture half of a whole CLIP, the decoder of a whole T5."""
    from opensora.opensora_models.checkpoint.readers import SafetensorsFile
    from opensora.opensora_models.native.text.clip import load_text_encoder

    t5 = load_file(tiny_models / "text_encoders" / "random-t5.safetensors")
    save_file(clip_weights(tiny_models) | {"vision_model.x": torch.ones(4)}, tmp_path / "clip.safetensors")
    files = [tmp_path / f"t5-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file(t5, files[0])
    save_file({"decoder.block.0.x": torch.ones(4), "lm_head.weight": torch.ones(4)}, files[1])
    made = SafetensorsFile._tensor
    read: list[str] = []
    monkeypatch.setattr(
        SafetensorsFile, "_tensor", lambda own, file, name: (read.append(name), made(own, file, name))[1]
    )
    load_text_encoder(files[0], clip_l=tmp_path / "clip.safetensors")
    assert "text_model.final_layer_norm.bias" in read and "encoder.final_layer_norm.weight" in read
    assert not [name for name in read if name.startswith(("vision_model.", "decoder.", "lm_head."))]


def shaped(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def clip_of_width(width: int, positions: int = 77, words: int = 49408) -> dict[str, Tensor]:
    sizes = {
        "embeddings.token_embedding": (words, width),
        "embeddings.position_embedding": (positions, width),
        "encoder.layers.0.mlp.fc1": (8, width),
    }
    return {f"text_model.{name}.weight": torch.zeros(1).expand(size).half().clone() for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: random_weights.fill(random_weights.t5_shapes(64, 8, 16, 4, 1, 100)), "looks like a T5 text encoder"),
        (lambda: clip_of_width(1280), "is CLIP-G with 1280"),
        (lambda: clip_of_width(1024), "is CLIP-H with 1024"),
        (lambda: clip_of_width(16, positions=248), "for 248 tokens"),
        (lambda: clip_of_width(16, words=7), "of 7 words"),
        (lambda: {"transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(2, 2)}, "OpenCLIP"),
        (lambda: {"x": torch.zeros(1)}, "does not know"),
    ],
)
def test_other_files_are_refused(comfy: Path, tmp_path: Path, tiny_models: Path, content: Any, words: str) -> None:
    save_file(content(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"'other.safetensors' .*{words}.*clip_l.safetensors") as error:
        encoders(tiny_models, clip_l=tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


def test_the_two_files_in_each_others_place(comfy: Path, tiny_models: Path) -> None:
    from opensora.opensora_models.native.text.clip import load_text_encoder

    t5, clip = (tiny_models / "text_encoders" / f"random-{name}.safetensors" for name in ("t5", "clip-l"))
    with pytest.raises(ValueError, match="'random-clip-l.safetensors' looks like a CLIP text encoder.*T5 v1.1 XXL"):
        load_text_encoder(clip, clip_l=t5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("text_model.encoder.layers.1.mlp.fc2.bias"), "lacks 1 of its"),
        (lambda w: w.pop("text_model.final_layer_norm.weight"), "lacks 1 of its"),
        (lambda w: w.update({"text_model.encoder.layers.7.x": torch.zeros(1)}), "are not complete"),
        (lambda w: w.update({"text_model.encoder.layers.1.mlp.fc2.bias": torch.zeros(3)}), "is .3. where"),
        (lambda w: w.update({"text_model.final_layer_norm.bias": torch.zeros(16).int()}), "holds int32"),
        (lambda w: w.update(scaled_fp8=torch.zeros(2)), "is quantised, which ComfyUI reads for T5 only"),
    ],
)
def test_damaged_clip_files(comfy: Path, tiny_models: Path, tmp_path: Path, change: Any, words: str) -> None:
    weights = clip_weights(tiny_models)
    change(weights)
    save_file(weights, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=f"'clip.safetensors'.*{words}"):
        encoders(tiny_models, clip_l=tmp_path / "clip.safetensors")


def test_clip_missing_and_widths_are_said_before_encoding(
    pair: Any, alone: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opensora.opensora_models.mmdit.config import MMDiTConfig
    from opensora.opensora_models.native.text import encoding
    from opensora.opensora_models.native.text.encoding import check_clip

    with pytest.raises(ValueError, match="Open-Sora 2.0 reads CLIP-L beside T5.*choose clip_l.safetensors as clip_l_n"):
        check_clip(alone, model)
    for config, words in (
        (MMDiTConfig(vec_in_dim=POOLED), "gives 64 numbers per token, but the MODEL reads 4096.*t5xxl_fp16"),
        (MMDiTConfig(context_in_dim=WIDTH), "16 numbers for the whole prompt, but the MODEL reads 768.*clip_l.safet"),
    ):
        monkeypatch.setattr(encoding, "opensora_config", lambda _, config=config: config)
        with pytest.raises(ValueError, match=words):
            check_clip(pair, model)


class Other:
    """A CLIP of these encoders."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def tokenize(self, text: str) -> dict[str, list[Any]]:
        return {name: [[(1, 1.0)]] for name in self.names}


@pytest.mark.parametrize(
    ("names", "title"),
    [(("l",), "CLIP-L"), (("g", "l", "t5xxl"), "CLIP-G and CLIP-L and T5 XXL"), (("umt5xxl",), "umT5 XXL"),
     ((), "unknown kind"), (("l", "t5xxl", "llama"), "Llama"), (("l", "llama"), "Llama")],
)  # fmt: skip
def test_other_encoders_are_refused_for_2_0(model: Any, names: tuple[str, ...], title: str) -> None:
    from opensora.opensora_models.native.text.encoding import check_clip

    with pytest.raises(ValueError, match=f"The CLIP is .*{title}.*2.0 reads T5 v1.1 XXL and CLIP-L; .*type flux"):
        check_clip(Other(*names), model)


def test_2_0_has_no_learned_text(model: Any) -> None:
    from opensora.opensora_models.native.text.encoding import null_conditioning

    with pytest.raises(ValueError, match="2.0 has no learned text .*output negative of Open-Sora Text Encode"):
        null_conditioning(model, [[torch.zeros(1, 512, WIDTH), {}]])


def test_the_loader_node(executor: Executor, tiny_models: Path) -> None:
    from support.comfyui import NodeError

    inputs = {"text_encoder_name": "random-t5.safetensors", "precision": "default", "device": "default"}

    def names(**more: str) -> list[str]:
        loader = {"class_type": "OSoraTextEncoderLoader", "inputs": {**inputs, **more}}
        (clip,) = executor.run({"clip": loader}, ("clip", 0))
        return list(clip.tokenize(""))

    assert names() == names(clip_l_name="none") == ["t5xxl"]
    assert names(clip_l_name="random-clip-l.safetensors") == ["l", "t5xxl"]
    with pytest.raises(NodeError, match="looks like a T5 text encoder"):
        names(clip_l_name="random-t5.safetensors")


@pytest.mark.parametrize("kind", ["lumina2", "flux", "stable_diffusion"])
def test_the_tiny_clip_l_alone_is_one_sentence_in_cores_loader(
    comfy: Path, executor: Executor, tiny_models: Path, kind: str
) -> None:
    """It is the only file there on a new install, where the page's own first graph takes it."""
    from support.core_nodes import call

    with pytest.raises(
        ValueError, match=r"is \d+ wide, where every other is 768.*Open-Sora Load Text Encoder"
    ) as found:
        call("CLIPLoader", clip_name="random-clip-l.safetensors", type=kind)
    assert "\n" not in str(found.value)
