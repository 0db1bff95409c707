"""Shapes and settings of a reader: frozen values, unknown keys refused."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

Mode = Literal["full", "float", "binary"]
Calibration = Literal["predictive", "channel", "paper"]
StraightThrough = Literal["tanh", "clipped"]
CALIBRATIONS: tuple[Calibration, ...] = ("predictive", "channel", "paper")
MODES: tuple[Mode, ...] = ("full", "float", "binary")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line."""


def check_numbers(config: "T5Config | BertConfig", least: dict[str, int], tokens: tuple[str, ...]) -> None:
    """Refuse whole numbers below the least that makes sense, and ids of tokens that the vocabulary has not.

    Raises:
        ConfigError: names the first.
    """
    for name in (*least, *tokens):
        value = getattr(config, name)
        if type(value) is not int or value < least.get(name, 0):
            raise ConfigError(f"{name} is {value!r}; use an integer of at least {least.get(name, 0)}")
    for name in tokens:
        if getattr(config, name) >= config.vocab_size:
            raise ConfigError(f"{name} is {getattr(config, name)}; vocab_size is {config.vocab_size}, use an id below")


def check_amount(name: str, value: object, below: float = math.inf) -> None:
    """Raise ConfigError for what is no number from 0 to `below`, which it may not be."""
    if not isinstance(value, int | float) or not 0 <= value < below:
        raise ConfigError(f"{name} is {value!r}; use a number of at least 0 and below {below:g}")


def check_line(values: object) -> tuple[float, float]:
    """Return a (slope, intercept); ConfigError for what is none, or does not rise."""
    if isinstance(values, list | tuple) and len(values) == 2 and all(type(v) in (int, float) for v in values):
        slope, intercept = map(float, values)
        if 0 < slope < math.inf and math.isfinite(intercept):
            return slope, intercept
    raise ConfigError(f"no_answer_calibration is {values!r}; use [slope, intercept], the slope above 0, or null")


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5: 1.0 (ReLU, tied head, scaled output) or 1.1 / LM-adapt / Flan (gated GELU, own head, no scaling).

    Whether the head is tied is read from the tensors on disk, not from here (`btr.model.checkpoint`).
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tied_head: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self) -> None:
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ConfigError(
                f"feed_forward_proj is {self.feed_forward_proj!r}; known: 'relu' (T5 1.0), 'gated-gelu' (T5 1.1)"
            )
        sizes = dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_decoder_layers", "num_heads"), 1)
        buckets = {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 2}
        tokens = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
        check_numbers(self, sizes | buckets | {"num_layers": 0}, tokens)
        count, most = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if most <= count // 2:
            raise ConfigError(
                f"relative_attention_num_buckets is {count} and relative_attention_max_distance {most}; the "
                "second has to be more than half of the first"
            )
        check_amount("dropout_rate", self.dropout_rate, 1)
        check_amount("layer_norm_epsilon", self.layer_norm_epsilon)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward is the gated one of T5 1.1."""
        return self.feed_forward_proj == "gated-gelu"

    @classmethod
    def from_hf(cls, hf: dict[str, Any], tied_head: bool) -> "T5Config":
        """Read a Hugging Face `config.json`; keys that do not shape the model are ignored.

        Raises:
            ConfigError: not a T5, or a value out of what this implementation knows.
        """
        if hf.get("model_type") != "t5":
            raise ConfigError(f"model_type is {hf.get('model_type')!r}; btr reads T5 ('t5'), 'bert' and 'mpnet'")
        names = {f.name for f in fields(cls)}
        known = {key: value for key, value in hf.items() if key in names and value is not None}
        known.setdefault("num_decoder_layers", known.get("num_layers", cls.num_layers))
        known.setdefault("scale_decoder_outputs", hf.get("tie_word_embeddings") is not False)
        known["tied_head"] = tied_head
        if isinstance(known.get("eos_token_id"), list):
            raise ConfigError(f"eos_token_id is {known['eos_token_id']}; one end-of-sequence id is supported")
        return cls(**known)

    def to_hf(self) -> dict[str, Any]:
        """Write the Hugging Face form, readable by transformers' T5Config."""
        hf = asdict(self)
        hf.pop("tied_head")
        return hf | {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "is_encoder_decoder": True,
            "tie_word_embeddings": self.scale_decoder_outputs,
        }


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT with absolute positions and exact GELU, in transformers' names."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    family: ClassVar[str] = "bert"  # model_type, and how names of its tensors begin
    segmented: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        least = dict.fromkeys(names, 1) | {"type_vocab_size": int(self.segmented)}
        check_numbers(self, least | {"max_position_embeddings": 1 + self.first_position}, ("pad_token_id",))
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size is {self.hidden_size} and num_attention_heads {self.num_attention_heads}; use a "
                "number of heads that divides it"
            )
        check_amount("layer_norm_eps", self.layer_norm_eps)

    @property
    def first_position(self) -> int:
        """Row of the table of positions that a text's first token takes."""
        return 0

    @property
    def room(self) -> int:
        """Tokens that the table of positions has room for."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "BertConfig":
        """Read a Hugging Face `config.json`, of a BERT or an MPNet; keys that do not shape the model are ignored.

        Raises:
            ConfigError: neither, or a value out of what this implementation knows.
        """
        known = {kind.family: kind for kind in (BertConfig, MPNetConfig)}.get(hf.get("model_type", cls.family))
        if known is None:
            raise ConfigError(
                f"model_type is {hf['model_type']!r}, expected 'bert' or 'mpnet'; span readers are of these"
            )
        for name, value in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if hf.get(name, value) != value:
                raise ConfigError(f"{name} is {hf[name]!r}, expected {value!r}; span readers are such a BERT")
        names = {f.name for f in fields(known)}
        return known(**{key: value for key, value in hf.items() if key in names and value is not None})

    def to_hf(self) -> dict[str, Any]:
        """Write the Hugging Face form, readable by transformers' BertConfig."""
        return asdict(self) | {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu"}


@dataclass(frozen=True)
class MPNetConfig(BertConfig):
    """Shape of an MPNet: a BERT without segments, with a bias of distances as T5's that all layers share."""

    vocab_size: int = 30527
    max_position_embeddings: int = 514
    type_vocab_size: int = 0
    pad_token_id: int = 1
    relative_attention_num_buckets: int = 32

    family: ClassVar[str] = "mpnet"
    segmented: ClassVar[bool] = False
    relative_attention_max_distance: ClassVar[int] = 128  # which MPNet's configuration does not name

    def __post_init__(self) -> None:
        super().__post_init__()
        count, reach = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if type(count) is not int or not 4 <= count < 2 * reach:
            raise ConfigError(f"relative_attention_num_buckets is {count!r}; use an integer from 4 to {2 * reach - 1}")
        if self.type_vocab_size:
            raise ConfigError(f"type_vocab_size is {self.type_vocab_size}; an MPNet has no segments, leave it out")

    @property
    def num_heads(self) -> int:
        """Heads of attention, by T5's name."""
        return self.num_attention_heads

    @property
    def first_position(self) -> int:
        """Row of the table of positions that a text's first token takes: the one after padding's."""
        return self.pad_token_id + 1

    def to_hf(self) -> dict[str, Any]:
        """Write the Hugging Face form, readable by transformers' MPNetConfig."""
        shape = asdict(self)
        del shape["type_vocab_size"]
        return shape | {"architectures": ["MPNetModel"], "model_type": "mpnet", "hidden_act": "gelu"}


T5_SHAPES: dict[str, T5Config] = {
    "tiny": T5Config(
        vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=4, num_decoder_layers=2, num_heads=4, dropout_rate=0.0
    ),
    "small": T5Config(
        vocab_size=16384,
        d_model=256,
        d_kv=32,
        d_ff=768,
        num_layers=6,
        num_decoder_layers=3,
        num_heads=8,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    ),
    "base": T5Config(
        d_model=768,
        d_ff=2048,
        num_layers=12,
        num_decoder_layers=12,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        tied_head=False,
        scale_decoder_outputs=False,
    ),
    "large": T5Config(
        d_model=1024,
        d_ff=2816,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=16,
        feed_forward_proj="gated-gelu",
        tied_head=False,
        scale_decoder_outputs=False,
    ),
}


@dataclass(frozen=True)
class ReaderConfig:
    """How a reader splits, binarizes and limits its input; `btr_config.json`.

    k is the number of lower encoder layers run apart (0: the reader knows `full` mode only).
    calibration is 'channel' (u_hat = mean + magnitude * sign(u - mean)), 'predictive' (signs of what the tokens
    themselves do not tell) or 'paper' (u_hat = sign(u)). bits is the number of signs a token, 0 for D; 'predictive'
    alone takes fewer.
    Limits are in tokens: question without the end of sequence, passage with it.
    no_answer_calibration is the (slope, intercept) of the log-odds of a span reader's no_answer, fitted to its weights
    (`btr train calibrate`); None: they are as they are.
    unread are ids of tokens that layers k+1..n do not see of a passage, in modes float and binary: stop words and
    punctuation, of which nothing is kept but the id. The layers below have read them; their places stay empty.
    no_answer_above is the probability that no passage answers over which a span reader abstains; None: it never does.
    """

    k: int = 0
    calibration: Calibration = "channel"
    bits: int = 0
    default_mode: Mode = "full"
    passages: int = 20  # read per question unless told
    max_question_tokens: int = 64
    max_passage_tokens: int = 320
    no_answer_calibration: tuple[float, float] | None = None
    unread: tuple[int, ...] = ()
    no_answer_above: float | None = field(default=None, repr=False)  # what is read and found does not depend on it
    format_version: int = 1

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise ConfigError(f"calibration is {self.calibration!r}; known: {', '.join(CALIBRATIONS)}")
        if self.default_mode not in MODES:
            raise ConfigError(f"default_mode is {self.default_mode!r}; known: {', '.join(MODES)}")
        if self.bits and self.calibration != "predictive":
            raise ConfigError(f"bits is {self.bits} and calibration {self.calibration!r}; only 'predictive' takes bits")
        for name, least in (
            ("k", 0),
            ("bits", 0),
            ("passages", 1),
            ("max_question_tokens", 1),
            ("max_passage_tokens", 2),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} is {value!r}; use an integer of at least {least}")
        if (line := self.no_answer_calibration) is not None:
            object.__setattr__(self, "no_answer_calibration", check_line(line))
        unread = self.unread
        if not isinstance(unread, list | tuple) or not all(type(i) is int and i >= 0 for i in unread):
            raise ConfigError(f"unread is {unread!r}; use a list of token ids")
        object.__setattr__(self, "unread", tuple(sorted(set(unread))))
        above = self.no_answer_above
        if above is not None and (isinstance(above, bool) or not isinstance(above, int | float) or not 0 <= above <= 1):
            raise ConfigError(f"no_answer_above is {above!r}; use a probability from 0 to 1, or leave it out")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ReaderConfig":
        """Build from JSON, refusing unknown keys and newer formats."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if values.get("format_version", 1) > cls.format_version:
            raise ConfigError(
                f"reader format {values['format_version']} is newer than {cls.format_version}, "
                "the newest this btr reads; upgrade btr"
            )
        if unknown:
            raise ConfigError(f"unknown keys in btr_config.json: {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**values)
