"""What makes a T5 file fit: its numbers read off the shapes, other kinds told apart."""

from __future__ import annotations

import pytest

from opensora.opensora_models.text.t5_config import T5Config, encoder_name, encoder_weights, t5_config

XXL = T5Config(4096, 10240, 64, 64, 24, 32128)


def shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    inner = config.d_kv * config.num_heads
    found: dict[str, tuple[int, ...]] = {"shared.weight": (config.vocab_size, config.d_model)}
    for name in encoder_weights(config):
        found[name] = (config.d_model,)
    for layer in range(config.num_layers):
        found[f"encoder.block.{layer}.layer.0.SelfAttention.q.weight"] = (inner, config.d_model)
        found[f"encoder.block.{layer}.layer.1.DenseReluDense.wi_0.weight"] = (config.d_ff, config.d_model)
    found["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, config.num_heads)
    return found


@pytest.mark.parametrize("config", [XXL, T5Config(64, 128, 16, 4, 2, 32128)])
def test_config_from_shapes(config: T5Config) -> None:
    assert t5_config(shapes(config), "file") == config


def test_number_of_weights() -> None:
    # The released encoder has 219 tensors besides the second name of its embedding.
    assert len(set(encoder_weights(XXL))) + 1 == 219


def test_one_of_the_two_names_of_the_embedding_is_enough() -> None:
    found = shapes(XXL)
    found["encoder.embed_tokens.weight"] = found.pop("shared.weight")
    assert t5_config(found, "file") == XXL
    assert encoder_name("encoder.embed_tokens.weight") == "shared.weight"


def test_the_decoder_is_left_out() -> None:
    assert encoder_name("decoder.block.0.layer.0.SelfAttention.q.weight") is None
    assert encoder_name("lm_head.weight") is None
    assert encoder_name("scaled_fp8") == "scaled_fp8"


def test_other_t5_are_refused() -> None:
    old = {name.replace("wi_0", "wi"): shape for name, shape in shapes(XXL).items()}
    with pytest.raises(ValueError, match="'old' is an older T5 without gated layers.*t5xxl_fp16.safetensors"):
        t5_config(old, "old")
    with pytest.raises(ValueError, match="384 words where Open-Sora's tokenizer has 32100"):
        t5_config(shapes(T5Config(64, 128, 16, 4, 2, 384)), "byt5")
    incomplete = shapes(XXL)
    del incomplete["encoder.final_layer_norm.weight"]
    with pytest.raises(ValueError, match="lacks 'encoder.final_layer_norm.weight'"):
        t5_config(incomplete, "file")
