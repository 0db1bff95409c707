"""The command line: what is read from it, and what is refused in one line."""

import re

import pytest

from btr.errors import InputError
from btr.train.options import build_stage, parse, parse_losses, parse_modes, parse_share, parser, stage_options

RUN = ["--out", "run", "--steps", "1"]


def test_modes_are_read() -> None:
    assert parse_modes("binary=3,full") == (("binary", 3.0), ("full", 1.0))


@pytest.mark.parametrize(
    "given", ["bits=1", "binary=0", "binary=-1", "binary=x", "binary=nan", "full=inf", "", "full,"]
)
def test_modes_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=f"--modes {re.escape(repr(given))}"):
        parse_modes(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nq.jsonl", ("nq.jsonl", 1)),
        ("nq.jsonl=3", ("nq.jsonl", 3)),
        ("a=b/nq.jsonl=0.5", ("a=b/nq.jsonl", 0.5)),
        ("k=9.jsonl", ("k=9.jsonl", 1)),
        ("=3", ("=3", 1)),
    ],
)
def test_share_of_a_file_is_read(given: str, expected: tuple[str, float]) -> None:
    assert parse_share(given) == expected


@pytest.mark.parametrize("share", ["0", "-1", "inf"])
def test_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(InputError, match=f"--questions nq.jsonl={share}: the share is {share}; give one above 0"):
        parse_share(f"nq.jsonl={share}")


def test_weights_change_those_of_the_stage() -> None:
    stage = build_stage(parse(["joint", *RUN, "--teacher", "t", "--losses", "recovery=0,rate=0.5"]))
    assert stage.weights == {"task": 1, "distillation": 1, "answers": 1, "recovery": 0, "rate": 0.5}
    assert stage.losses == ("task", "distillation", "answers", "rate")


@pytest.mark.parametrize("given", ["bits=1", "task", "task=", "task=-1", "task=nan", "task=inf", ""])
def test_weights_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=f"--losses {re.escape(repr(given))}"):
        parse_losses(given)


def test_switches_change_the_stage() -> None:
    plain = build_stage(parse(["decomposed", *RUN, "--teacher", "t"]))
    assert (plain.distill, plain.top_ratio, plain.straight_through) == ("top", 0.5, "tanh")
    given = ["--distill", "all", "--top-ratio", "0.25", "--straight-through", "clipped", "--modes", "binary"]
    stage = build_stage(parse(["decomposed", *RUN, "--teacher", "t", *given]))
    assert (stage.distill, stage.top_ratio, stage.straight_through) == ("all", 0.25, "clipped")
    assert stage.modes == (("binary", 1.0),)


def test_stage_without_distillation_needs_no_teacher() -> None:
    assert build_stage(parse(["decomposed", *RUN, "--distill", "off"])).losses == ("task",)
    assert build_stage(parse(["decomposed", *RUN, "--losses", "distillation=0"])).losses == ("task",)
    with pytest.raises(InputError, match="stage 'reader' has no loss left; give one of task, "):
        build_stage(parse(["reader", *RUN, "--losses", "task=0"]))
    with pytest.raises(InputError, match="pass --teacher FOLDER"):
        build_stage(parse(["reader", *RUN, "--losses", "answers=1"]))


REFUSED = {
    "--batch 0": "--batch is 0; give at least 1",
    "--accumulate 0": "--accumulate is 0; give at least 1",
    "--dev-every 0": "--dev-every is 0; give at least 1",
    "--steps -1": "--steps is -1; give at least 0",
    "--learning-rate nan": "--learning-rate is nan; give at least 0",
    "--learning-rate inf": "--learning-rate is inf; give at least 0",
    "--blanks 1.5": "--blanks is 1.5; give a share between 0 and 1",
    "--unanswerable -0.5": "--unanswerable is -0.5; give a share between 0 and 1",
    "--row-tokens 32": "--question-tokens is 32 and --row-tokens 32; leave a row room for the passage",
    "--passages 2,0": "argument --passages: '2,0' is not a number above 0, or several as in 2,2,4",
    "--passages x": "argument --passages: 'x' is not a number above 0",
    "--batch x": "argument --batch: invalid int value: 'x'; see: btr train reader --help",
    "--decoder-layers -1": "--decoder-layers is -1; give at least 0",
    "--conf default": "unrecognized arguments: --conf default; see: btr train --help",
    "--bach 3": "unrecognized arguments: --bach 3; see: btr train --help",
    "--distill some": "argument --distill: invalid choice: 'some'",
}


@pytest.mark.parametrize("given", REFUSED)
def test_mistake_is_refused(given: str) -> None:
    with pytest.raises(InputError, match=re.escape(REFUSED[given])):
        parse(["reader", *RUN, *given.split()])


def test_missing_commands_and_options_are_refused() -> None:
    for argv, expected in (
        ([], "COMMAND"),
        (["bake"], "invalid choice: 'bake'"),
        (["reader", "--steps", "1"], "--out"),
        (["reader", "--out", "run"], "pass --steps, or --config with a recipe"),
    ):
        with pytest.raises(InputError, match=re.escape(expected)):
            parse(argv)


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("tokenizer", "vocabulary", "neighbours", "reader", "joint", "all"):
        with pytest.raises(SystemExit) as left:
            parser().parse_args([command, "--help"])
        assert left.value.code == 0
        said = capsys.readouterr().out
        options = re.findall(r"^  (--[a-z-]+)(.*)\n(?=(.*)$)", said, re.MULTILINE)
        assert len(options) >= 3
        for name, beside, below in options:
            assert "  " in beside or below.startswith(" " * 20), f"{command} {name} has no help"
    assert "learning-rate" in stage_options()
