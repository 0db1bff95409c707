"""Settle how to serve: a file, over it `BTR_*` in the environment, over that the flags of the command line."""

import argparse
import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from btr.command import Parser
from btr.errors import InputError
from btr.model.config import MODES, Mode
from btr.serve.faults import shown, wanted

DEFAULT_STORE = "corpus.btr"
DType = Literal["auto", "bfloat16", "float32", "int8"]
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Home = BeforeValidator(
    lambda value: os.path.expanduser(value) if isinstance(value, str) else value
)  # ~: not by a shell


class Settings(BaseSettings):
    """How to serve. The description of each field is its line in `--help`."""

    model_config = SettingsConfigDict(env_prefix="BTR_", env_ignore_empty=True, extra="forbid", frozen=True)

    store: Annotated[Path, Home] = Field(Path(DEFAULT_STORE), description="the store to answer from")
    reader: Annotated[str | None, Home] = Field(
        None, description="folder or hub id of the reader; default: the store's own"
    )
    dtype: DType = Field(
        "auto",
        description="precision of the reader; auto: bfloat16 where the device multiplies it, else float32; with "
        "--editable, that of the store; int8: so, with int8 weights from layer k+1 on, sooner and not quite the same",
    )
    device: str = Field(
        "cpu", description="where the reader computes: cpu, cuda, cuda:1, mps, or auto: the GPU, if there is one"
    )
    threads: Count | None = Field(
        None,
        description="threads that compute; default: OMP_NUM_THREADS, or the cores of this process and its container",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="0 takes a free one")
    mode: Mode = Field("binary", description="how passages are read when a request does not say")
    top: Count | None = Field(None, description="passages read per question; default: the reader's own number")
    prune: int = Field(
        0, ge=0, le=1 << 20, description="passages read to the end, of those; 0: all (needs skim.safetensors)"
    )
    no_answer_above: float | None = Field(
        None, ge=0, le=1,
        description="probability that no passage answers over which no answer is given, but a best guess (1: always "
        "answer); default: the reader's own",
    )  # fmt: skip
    keys_file: Annotated[Path | None, Home] = Field(
        None, description="API keys, one to a line; without it everybody may ask"
    )
    allowed_hosts: str = Field(
        "", description="names, parted by commas, that a server without keys answers to beside those of this machine"
    )
    editable: bool = Field(False, description="let /v1/passages put passages into the store and delete them")
    queue: Count = Field(64, description="questions that may wait; one more is answered 429")
    batch_tokens: int | None = Field(
        None, ge=0, le=1 << 24,
        description="passage tokens read together; 0: one question at a time; default: 16384 for a generative reader, "
        "0 for a span reader, which gains nothing from company",
    )  # fmt: skip
    timeout: Seconds = Field(60.0, description="seconds a question may take, its wait included, before it is given up")
    shutdown_timeout: Seconds = Field(30.0, description="seconds for the work under way after SIGTERM")
    receive_timeout: Seconds = Field(20.0, description="seconds for the head of a request to come, and for its body")
    send_timeout: Seconds = Field(20.0, description="seconds for a client to read of what waits for it")
    connections: Count = Field(512, description="connections at a time; one more is answered 503")
    max_body_bytes: Count = Field(1 << 20, description="bytes of a request")
    max_question_chars: Count = Field(2000, description="characters of a question")
    max_passages: Count = Field(100, description="passages read per question, or put into the store at a time")
    max_new_tokens: Count = Field(128, description="tokens of an answer")
    max_questions: Count = Field(32, description="questions of one batch request")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command, a flag for every setting."""
    parser = Parser(
        prog="python -m btr.serve",
        description="Serve answers from a store: an HTTP API and a page to ask it from.",
        epilog="Each setting can also stand in a TOML file (--config), or as BTR_NAME, in capitals, in the "
        "environment; a flag goes before the environment, and that before the file.",
    )
    parser.add_argument("--config", metavar="FILE", help="settings in TOML, e.g. max_passages = 40")
    parser.add_argument("--dry-run", action="store_true", help="check the settings, print them, and leave")
    for name, field in Settings.model_fields.items():
        said = field.description or ""
        if field.default is not None:
            said += f"; default: {field.default}"
        keywords: dict[str, Any] = {"help": said.replace("%", "%%"), "default": argparse.SUPPRESS}
        if name == "store":
            parser.add_argument("store", nargs="?", metavar="STORE", **keywords)
        elif name == "mode":
            parser.add_argument("--mode", choices=MODES, **keywords)
        elif name == "dtype":
            parser.add_argument("--dtype", choices=get_args(DType), **keywords)
        elif field.annotation is bool:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, **keywords)
        else:
            parser.add_argument(_flag(name), metavar="X", **keywords)
    return parser


def _describe(error: ValidationError, config: str | None) -> str:
    """Say in one line what is wrong with a setting, and where it may have come from."""
    fault: Any = error.errors()[0]
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"{config}: unknown setting {name!r}; known: {', '.join(Settings.model_fields)}"
    places = " or ".join([f"BTR_{name.upper()}", *([config] if config else [])])
    return f"{_flag(name)} (or {places}) is {shown(fault['input'])}: {wanted(fault)}"


def read_settings(flags: dict[str, Any], config: str | None = None) -> Settings:
    """Put the file, the environment and the flags together.

    Raises:
        InputError: no such file, not TOML, an unknown setting in it or in the environment, or a value out of range.
    """

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            # utf-8-sig: Notepad begins a file with a byte order mark
            text = Path(config).read_text(encoding="utf-8-sig") if config else ""
            file = [InitSettingsSource(settings_cls, tomllib.loads(text))] if config else []
            return (init_settings, env_settings, *file)

    config = os.path.expanduser(config) if config else None
    known = {f"BTR_{name.upper()}" for name in Settings.model_fields} | {"BTR_KERNELS"}
    for variable in sorted(os.environ):
        if (name := variable.upper()).startswith("BTR_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise InputError(f"{variable} in the environment is no setting ({hint}); rename or unset it")
    if config and not Path(config).is_file():
        raise InputError(f"--config {config}: there is no such file")
    try:
        return Sourced(**flags)
    except ValidationError as error:
        raise InputError(_describe(error, config)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {config}: not TOML ({error}); mend the file") from error


def parse(argv: list[str] | None) -> tuple[Settings, bool]:
    """Return the command's settings, and whether they are only to be checked.

    Raises:
        InputError: a setting is wrong.
    """
    flags = vars(make_parser().parse_args(argv))
    config, dry_run = flags.pop("config"), flags.pop("dry_run")
    return read_settings(flags, config), dry_run
