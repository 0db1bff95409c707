"""`python -m btr.store`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from btr import progress
from btr.storage import Store
from btr.store import __main__ as command

Capture = pytest.CaptureFixture[str]


def damage(store: Store) -> None:
    (data,) = store.path.rglob("data.mdb")
    data.write_bytes(data.read_bytes().replace(b"Title 1", b"Title 2"))


def test_info_adds_up(store: Store, capsys: Capture) -> None:
    assert command.main(["info", str(store.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    sizes, tokens = found["bytes"], found["manifest"]["tokens"]
    assert sizes["total"] == sum(sizes[part] for part in command.PARTS)
    assert sizes["signs"] == 9 * tokens and sizes["scalars"] > 2 * tokens  # of which no two are alike
    assert found["bytes_per_token"]["signs"] == 9
    assert found["float_bytes_per_token"] == {"bf16": 130, "fp32": 260}
    payload = sum(sizes[part] for part in ("signs", "scalars", "token_ids", "text", "ids"))
    assert found["overhead"] == pytest.approx(sizes["total"] / payload - 1)


def test_info_is_an_aligned_table(store: Store, capsys: Capture) -> None:
    (store.path / "note").write_text("beside")
    assert command.main(["info", str(store.path)]) == 0
    text = capsys.readouterr().out
    assert f"reader   readers/base {store.manifest.fingerprint}, k = 9, 65 bits a token" in text
    assert "corpus   my corpus: 20 passages" in text
    table = text[text.index("part ") :].splitlines()[:10]
    assert len({len(line) for line in table}) == 1, table
    assert [line[:16].strip() for line in table[1:]] == [*command.PARTS.values(), "on disk (du)"]
    assert "other files" in text
    assert "bf16 states alone would take 130 bytes/token" in text


def test_info_of_an_empty_store(store: Store, capsys: Capture, write: Callable[..., Path]) -> None:
    path = write(store.path.with_name("empty"), count=0)
    assert command.main(["info", str(path)]) == 0
    assert "0 passages, 0 tokens" in capsys.readouterr().out


def test_verify_says_that_all_is_sound(store: Store, capsys: Capture) -> None:
    assert command.main(["verify", str(store.path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{store.path}: 20 passages, {store.manifest.tokens} tokens, all sound\n"
    assert re.fullmatch(r"verified 20/20 passages  \S+/s\n", err)


def test_verify_exits_2_with_the_problems(store: Store, capsys: Capture) -> None:
    damage(store)
    assert command.main(["verify", str(store.path)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{store.path}: 13 problems\n"  # 11 titles begin with 1; the data file, the content
    assert err.count("problem: ") == 13 and "block 1, record 5: CRC-32 of the record is" in err


def test_verify_as_json(store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SHOWN", 3)
    damage(store)
    assert command.main(["verify", str(store.path), "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["problems"], len(found["first_problems"]), err.count("problem: ")) == (13, 3, 3)


def test_verify_reports_progress(store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN", 0.0)
    assert command.main(["verify", str(store.path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("verified 8/20 passages  ") and lines[-2].endswith("/s  0 s left")


def test_a_mistake_is_one_line_and_exit_2(store: Store) -> None:
    missing = store.path / "missing"
    line = [sys.executable, "-m", "btr.store", "info", str(missing)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {missing} is not a store: it has no manifest.json\n"


def test_verify_of_a_file_that_is_not_lmdb(store: Store, capsys: Capture) -> None:
    (data,) = store.path.rglob("data.mdb")
    data.write_bytes(bytes(data.stat().st_size))
    assert command.main(["verify", str(store.path)]) == 2
    assert "data.mdb: " in capsys.readouterr().err


def test_latency_is_measured_and_changes_nothing(store: Store, write: Callable[..., Path], capsys: Capture) -> None:
    before = {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()}
    assert command.main(["latency", str(store.path), "--passages", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passages"] == 5 and found["tokens_a_passage"] > 0
    assert all(found[name] > 0 for name in ("open", "first_passage_cold", "cold", "warm"))
    assert found["warm_most"] >= found["warm"]
    assert {file: file.read_bytes() for file in store.path.rglob("*") if file.is_file()} == before
    assert command.main(["latency", str(store.path)]) == 0  # of 20 passages all
    assert "20 passages drawn at random" in capsys.readouterr().out
    assert command.main(["latency", str(write(store.path.with_name("none"), count=0))]) == 2
    assert "holds no passages" in capsys.readouterr().err
