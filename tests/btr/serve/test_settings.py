"""Where a setting comes from, and what is said when it is wrong."""

from pathlib import Path
from typing import Any

import pytest

from btr.errors import InputError
from btr.serve.settings import Settings, parse


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "serve.toml"
    file.write_text('queue = 3\nmode = "full"\nmax_passages = 7\n', encoding="utf-8")
    return file


def test_flag_goes_before_environment_and_that_before_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BTR_QUEUE", "4")
    monkeypatch.setenv("BTR_MODE", "float")
    monkeypatch.setenv("BTR_KERNELS", "numpy")  # not a setting of the server
    settings, dry_run = parse(["my.btr", "--config", str(config), "--mode", "binary"])
    assert (settings.store, settings.queue, settings.mode, settings.max_passages) == (Path("my.btr"), 4, "binary", 7)
    assert (settings.port, dry_run) == (8080, False)


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        (["--queue", "0"], {}, "--queue (or BTR_QUEUE) is '0'"),
        (["--timeout", "soon"], {}, "--timeout (or BTR_TIMEOUT) is 'soon'"),
        ([], {"BTR_MODE": "fast"}, "--mode (or BTR_MODE) is 'fast'"),
        (["--timeout", "nan"], {}, "--timeout"),
        (
            [],
            {"BTR_KEY_FILE": "keys"},
            "BTR_KEY_FILE in the environment is no setting (did you mean BTR_KEYS_FILE?); rename",
        ),
        ([], {"btr_xyzzy": ""}, "btr_xyzzy in the environment is no setting (known: BTR_ALLOWED_HOSTS, "),
        (["--config", "none.toml"], {}, "--config none.toml: there is no such file"),
    ],
)
def test_wrong_setting_is_named_with_its_places(
    argv: list[str], environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        parse(argv)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"), [("queu = 3", "unknown setting 'queu'; known: store, "), ("queue =", "not TOML")]
)
def test_wrong_file_is_told(config: Path, text: str, said: str) -> None:
    config.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        parse(["--config", str(config)])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_help_tells_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields if name != "store")


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 403), ("evil.example:80", 403), ("10.0.0.1", 403), ("", 200), ("localhost:1", 200),
     ("127.0.0.1", 200), ("[::1]:8080", 200), ("Btr.Example:1", 200)],
)  # fmt: skip
def test_names_of_others_are_refused_without_keys(kit: Any, reader: Any, host: str, status: int) -> None:
    with kit.serving(kit.make_desk(reader, allowed_hosts="a.example, btr.example")) as port:
        got, _, reply = kit.send(port, "GET", "/info", headers={"Host": host})
    assert got == status and (status == 200 or reply["error"]["code"] == "unknown_host")


def test_home_is_found_where_no_shell_has_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "serve.toml").write_text('keys_file = "~/keys"\n')
    monkeypatch.setenv("BTR_STORE", "~/a.btr")
    monkeypatch.setenv("BTR_READER", "~/reader")
    settings, _ = parse(["--config=~/serve.toml"])
    assert (settings.store, settings.reader) == (tmp_path / "a.btr", str(tmp_path / "reader"))
    assert settings.keys_file == tmp_path / "keys"
    monkeypatch.setenv("BTR_STORE", "~nobody-of-this-name/a~b")
    assert parse([])[0].store == Path("~nobody-of-this-name/a~b")
