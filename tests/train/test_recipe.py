"""Recipes: every shipped one becomes options, those given go before it, and what it cannot mean is refused."""

from pathlib import Path

import pytest

from btr.errors import InputError
from btr.train.options import build_stage, parse
from btr.train.recipe import SHIPPED, expand, read_recipe, stages_of

NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
THREE = ["reader", "decomposed", "binarized"]
# BTR §4: learning rate, steps, questions a step, passages, question tokens
PAPER = {
    "nq-base": (6e-5, 20_000, 8, 40, 40),
    "triviaqa-base": (4e-5, 20_000, 8, 40, 64),
    "webquestions-base": (8e-5, 3_000, 8, 40, 40),
    "fever-base": (6e-5, 10_000, 8, 40, 40),
    "mmlu-base": (5e-5, 2_000, 4, 30, 256),
}


def test_recipes_are_shipped() -> None:
    assert sorted([*PAPER, "default", "tasks"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_becomes_options(name: str) -> None:
    for stage in stages_of(read_recipe(name)):
        options = parse(expand([stage, "--config", name, "--out", "run", "--teacher", "teacher"]))
        assert options.steps > 0 and options.k > 0
        assert build_stage(options).name == options.command == stage


@pytest.mark.parametrize("name", PAPER)
def test_recipe_of_a_task_is_the_papers(name: str) -> None:
    assert stages_of(read_recipe(name)) == THREE
    for stage in THREE:
        found = parse(expand([stage, "--config", name, "--out", "run"]))
        shape = (found.batch * found.accumulate, *found.passages, found.question_tokens)
        assert (found.learning_rate, found.steps, *shape) == PAPER[name]
        assert (found.k, found.row_tokens - found.question_tokens, found.answer_tokens) == (9, 320, 32)
        assert (found.matrices, found.weight_decay, found.warmup, found.floor) == ("adamw", 0.01, 200, 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        batch = 3
        steps = 7
        compile = true
        questions = ["a.jsonl=2", "b.jsonl"]
        [reader]
        modes = "full=1,float=1"
        floor = 0.25
        [binarized]
        steps = 9
        compile = false
        """
    )
    return path


def test_table_goes_before_the_top_and_the_command_line_before_both(recipe: Path) -> None:
    given = ["--config", str(recipe), "--out", "run"]
    reader, binarized = (parse(expand([stage, *given])) for stage in ("reader", "binarized"))
    assert (reader.batch, reader.steps, reader.compile, reader.floor) == (3, 7, True, 0.25)
    assert (reader.modes, reader.questions) == ("full=1,float=1", ["a.jsonl=2", "b.jsonl"])
    assert (binarized.batch, binarized.steps, binarized.compile, binarized.modes) == (3, 9, False, None)
    other = parse(expand(["reader", *given, "--steps", "1", "--no-compile", "--questions", "c.jsonl"]))
    assert (other.batch, other.steps, other.compile, other.questions) == (3, 1, False, ["c.jsonl"])


def test_command_line_without_a_recipe_stays() -> None:
    for argv in (["reader", "--steps", "1"], ["tokenizer"], ["all", "--config", "nq-base"], []):
        assert expand(argv) == argv


def refusal(tmp_path: Path, text: str, stage: str = "reader") -> str:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        parse(expand([stage, "--config", str(path), "--out", "run"]))
    return str(refused.value)


def test_unknown_key_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    for text in ("[reader]\nlearning_rate = 1", "learning_rate = 1\n[reader]"):
        said = refusal(tmp_path, text)
        assert "unknown key 'learning_rate'; known: " in said
        known = said.split("known: ")[1].split(", ")
        assert {"learning-rate", "steps", "dev", "compile", "questions"} <= set(known)
        assert not {"out", "config", "no-resume", "help", "command"} & set(known)


def test_other_mistakes_are_refused(tmp_path: Path) -> None:
    assert "[binarised] is no stage; known: reader, decomposed" in refusal(tmp_path, "[binarised]\nsteps = 1")
    assert "has no stage [reader]; it has joint" in refusal(tmp_path, "[joint]\nsteps = 1")
    assert "not TOML" in refusal(tmp_path, "steps: 3")
    assert "argument --steps: invalid int value: 'many'" in refusal(tmp_path, "[reader]\nsteps = 'many'")
    assert "--batch is 0; give at least 1" in refusal(tmp_path, "[reader]\nsteps = 1\nbatch = 0")
    assert "pass --steps" in refusal(tmp_path, "[reader]")


@pytest.mark.parametrize("name", ["nq", "none.toml"])
def test_missing_recipe_is_refused_with_the_shipped_ones(name: str) -> None:
    with pytest.raises(InputError, match=rf"--config {name}: no such recipe; give a .toml file, or one of default, "):
        read_recipe(name)
