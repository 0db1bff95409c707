"""Configurations: what is read, what is refused, and the public face of the package."""

import dataclasses
import json
from typing import Any

import pytest
from transformers import T5Config as TheirConfig

import btr
from btr.model.config import T5_SHAPES, ConfigError, ReaderConfig, T5Config

PLAIN = {"model_type": "t5", "d_model": 32, "num_layers": 3}


def test_public_names_can_be_had() -> None:
    assert btr.__all__ == sorted(btr.__all__) == dir(btr)
    for name in btr.__all__:
        assert getattr(btr, name) is not None
    assert btr.Reader.__name__ == "Reader" and btr.Encoded.__name__ == "Encoded"
    with pytest.raises(AttributeError, match=r"no attribute 'Raeder'; it has .*Reader"):
        _ = btr.Raeder


def test_keys_that_shape_nothing_are_ignored() -> None:
    config = T5Config.from_hf(PLAIN | {"architectures": ["x"], "n_positions": 512, "use_cache": True}, True)
    assert (config.d_model, config.num_layers) == (32, 3)


def test_decoder_is_as_deep_as_the_encoder_unless_said() -> None:
    assert T5Config.from_hf(PLAIN, True).num_decoder_layers == 3
    assert T5Config.from_hf(PLAIN | {"num_decoder_layers": None}, True).num_decoder_layers == 3
    assert T5Config.from_hf(PLAIN | {"num_decoder_layers": 1}, True).num_decoder_layers == 1


@pytest.mark.parametrize(
    ("flags", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # as transformers 5 writes 1.1
    ],
)
def test_scaling_is_read_as_transformers_reads_it(flags: dict[str, bool], scaled: bool) -> None:
    for tied in (True, False):  # of which it is independent
        assert T5Config.from_hf(PLAIN | flags, tied).scale_decoder_outputs is scaled
    assert TheirConfig(**PLAIN | flags).scale_decoder_outputs is scaled


@pytest.mark.parametrize("shape", sorted(T5_SHAPES))
def test_shape_goes_to_transformers_and_back(shape: str) -> None:
    config = T5_SHAPES[shape]
    written = json.loads(json.dumps(config.to_hf()))
    assert T5Config.from_hf(written, config.tied_head) == config
    theirs = TheirConfig(**written)
    kept = set(written) - {"architectures", "model_type", "is_encoder_decoder", "tie_word_embeddings"}
    assert {name: getattr(theirs, name) for name in kept} == {name: written[name] for name in kept}
    assert theirs.is_gated_act is config.gated
    assert T5Config.from_hf(theirs.to_dict(), config.tied_head) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, r"model_type is 'bert'; btr reads T5"),
        ({"model_type": None}, r"model_type is None; btr reads T5"),
        ({"feed_forward_proj": "gated-silu"}, r"'gated-silu'; known: 'relu'.*'gated-gelu'"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]; one"),
    ],
)
def test_model_that_is_not_known_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        T5Config.from_hf(PLAIN | change, True)


def test_reader_config_goes_to_json_and_back() -> None:
    config = ReaderConfig(k=9, calibration="paper", default_mode="binary", max_question_tokens=40)
    assert ReaderConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert ReaderConfig.from_dict({}) == ReaderConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"no_answer_calibration": [0, 1]},
            r"no_answer_calibration is \[0, 1\]; use \[slope, intercept\]",
        ),
        ({"no_answer_calibration": [1.0]}, r"no_answer_calibration is \[1\.0\]; use"),
        ({"no_answer_calibration": [1.0, float("nan")]}, r"no_answer_calibration is \[1\.0, nan\]; use"),
        ({"colour": 1, "k": 2}, r"unknown keys in btr_config.json: colour; known: k, calibration, .*format_version"),
        ({"format_version": 2, "colour": 1}, r"format 2 is newer than 1, the newest this btr reads; upgrade btr"),
        ({"calibration": "none"}, r"calibration is 'none'; known: predictive, channel, paper"),
        ({"default_mode": "fast"}, r"default_mode is 'fast'; known: full, float, binary"),
        ({"k": "2"}, r"k is '2'; use an integer of at least 0"),
        ({"k": 2.0}, r"k is 2.0; use an integer"),
        ({"k": True}, r"k is True; use an integer"),
        ({"k": -1}, r"k is -1; use an integer of at least 0"),
        ({"max_question_tokens": 0}, r"max_question_tokens is 0; use an integer of at least 1"),
        ({"max_passage_tokens": 1}, r"max_passage_tokens is 1; use an integer of at least 2"),
    ],
)
def test_reader_config_that_is_not_known_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReaderConfig.from_dict(values)


def test_configurations_cannot_be_changed() -> None:
    for config in (ReaderConfig(), T5Config()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.k = 3
