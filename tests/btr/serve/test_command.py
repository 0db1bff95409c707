"""The command `btr serve`, with a real, tiny reader and the store it made."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import btr.serve
from btr.corpus import Passage
from btr.model.config import MODES
from btr.model.devices import DTYPES, choose_dtype
from btr.model.int8_encoding import Int8Linear
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.serve import AnswerRequest, Service, Settings, load, main, serve
from btr.serve.schema import AnswerResponse, RequestError
from btr.storage import Store

WAIT = 900  # seconds, for what takes a few on a machine with nothing else to do


@pytest.fixture(scope="module")
def folder(
    tiny_readers: dict[str, Reader], tiny_passages: list[Passage], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny readers `1.0` and `1.1`, and two stores of `1.1`: `whole`, and `bits` without text or index."""
    folder = tmp_path_factory.mktemp("serve")
    for shape, reader in tiny_readers.items():
        reader.save_pretrained(folder / shape)
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for store, flags in (("whole", []), ("bits", ["--no-text", "--no-index"])):
        made_by = ["--reader", str(folder / "1.1"), "--store", str(folder / store)]
        assert precompute.main([str(folder / "corpus.jsonl"), *made_by, *flags]) == 0
    return folder


Complaint = Callable[..., str]


@pytest.fixture
def complaint(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Run the command in `folder`, see it refuse, and give what it said on standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(btr.serve, "serve", lambda service, keys, bound: pytest.fail("it serves"))
    monkeypatch.setattr(btr.serve, "write_json", lambda: None)  # it would keep the stream of one test for all
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    capsys.readouterr()

    def run(*argv: str, reader: str | None = "1.1") -> str:
        assert main([*(["--reader", reader] if reader else []), "--port", "0", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.endswith("\n")
        return err

    return run


def test_missing_store_says_how_to_make_it(complaint: Complaint) -> None:
    make = "make it with: python -m btr.precompute CORPUS --store"
    where = "(CORPUS: your files, or sample)"
    assert complaint() == f"error: no store at corpus.btr; {make} corpus.btr {where}\n"
    assert complaint("my store") == f"error: no store at my store; {make} 'my store'\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["whole", "--top", "0"], "--top (or BTR_TOP) is '0': "),
        (["whole", "--port", "70000"], "--port (or BTR_PORT) is '70000': "),
        (["whole", "--host", "127.0.0.1%none"], "cannot listen on 127.0.0.1%none:0: "),
        (["1.1"], "is not a store"),
        (["whole", "--reader", "1.0"], "was built by reader"),
        (["whole", "--reader", "nowhere/at/all"], "nowhere/at/all: "),
    ],
)
def test_bad_setting_is_told_in_one_line(complaint: Complaint, argv: list[str], message: str) -> None:
    error = complaint(*argv)
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_store_is_served_by_the_reader_that_it_names(
    folder: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Service] = []
    monkeypatch.setattr(btr.serve, "serve", lambda service, keys, bound: served.append(service))
    assert main(["whole", "--port", "0"]) == 0
    assert (served[0].model, served[0].settings.reader) == ("1.1", str(folder / "1.1"))
    served[0].reload()
    (folder / "1.1").rename(folder / "moved")
    try:
        assert main(["whole", "--port", "0", "--reader", "moved"]) == 0
        error = complaint("whole", reader=None)
    finally:
        (folder / "moved").rename(folder / "1.1")
    assert error.startswith(f"error: store whole was built by reader {folder / '1.1'}, not to be loaded (")
    assert error.endswith("); say with --reader where it is now\n") and "precompute" not in error
    error = complaint("whole", reader="1.0")
    assert f"open it with --reader {folder / '1.1'}, or build another beside it" in error
    assert "--store" in error and "whole.new" in error


def test_store_of_bits_alone_cannot_be_read_in_full(complaint: Complaint) -> None:
    warning, error = complaint("bits", "--mode", "full").splitlines()
    assert warning == "warning: bits has no BM25 index; questions must name their passages"
    assert error.startswith("error: bits: ") and "no text" in error


def test_empty_store_is_refused(complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "__len__", lambda store: 0)
    assert complaint("whole") == "error: the store whole has no passages\n"


def test_port_in_use_is_refused(complaint: Complaint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = complaint("whole", "--port", str(port))
    assert error.startswith(f"error: cannot listen on 127.0.0.1:{port}: ") and error.count("\n") == 1


def test_settings_are_checked_while_the_port_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["whole", "--dry-run", "--port", str(taken.getsockname()[1])]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == "whole"
    assert main(["nowhere", "--dry-run"]) == 2


def test_port_taken_while_the_reader_loads_is_refused(complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))

        def load_slowly(settings: Settings) -> Service:
            other.listen()
            return load(settings)

        monkeypatch.setattr(btr.serve, "load", load_slowly)
        monkeypatch.setattr(btr.serve, "serve", serve)
        assert "cannot listen on 127.0.0.1:" in complaint("whole", "--port", str(other.getsockname()[1]))


def test_warm_up_that_fails_ends_the_server(complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(service: Service) -> None:
        raise RequestError(500, "nothing comes out", "internal_error")

    monkeypatch.setattr(btr.serve, "serve", serve)
    monkeypatch.setattr(Service, "warm_up", fail)
    with pytest.raises(AssertionError, match=r"passages, model 1\.1"):  # it said where before it failed
        complaint("whole")


def test_store_that_cannot_be_written_is_not_editable(complaint: Complaint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert complaint("whole", "--editable").startswith("error: --editable: whole cannot be written to; ")


def test_service_reads_in_the_precision_asked_for(folder: Path) -> None:
    """From the store that a reader in float32 made."""
    name, question = str(folder / "1.1"), "Who built the lighthouse?"
    service = load(Settings(store=folder / "whole", reader=name, dtype="bfloat16"))
    assert service.reader.model.dtype is torch.bfloat16
    with Store.open(folder / "whole") as store:
        ids = sorted(store.ids())
        kept = store.get(ids)
    [reply] = service.answer([AnswerRequest(question=question, ids=ids)])
    assert isinstance(reply, AnswerResponse)
    half = Reader.from_pretrained(name, dtype="bfloat16")
    assert reply.score == pytest.approx(half.answer(question, kept, "binary").score, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_service_answers_as_its_reader_does(
    folder: Path, tiny_reader: Reader, tiny_passages: list[Passage], mode: str
) -> None:
    question = "Who built the lighthouse?"
    service = load(Settings(store=folder / "whole", reader=str(folder / "1.1"), mode=mode))
    [reply] = service.answer([AnswerRequest(question=question)])
    assert isinstance(reply, AnswerResponse)
    found = sorted(reply.passages, key=lambda cited: -(cited.retrieval_score or 0))
    read = [next(p for p in tiny_passages if p.id == cited.id) for cited in found]
    expected = tiny_reader.answer(question, read, mode=mode)
    assert (reply.model, found[0].id, reply.answer) == ("1.1", "p1", expected.text)
    assert reply.score == pytest.approx(expected.score, abs=1e-4)
    assert [cited.evidence for cited in found] == pytest.approx(expected.evidence.tolist(), abs=1e-5)
    assert reply.tokens_read == sum(map(len, expected.token_evidence))
    assert reply.bits_read == (reply.tokens_read * tiny_reader.D if mode == "binary" else 0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_stops_the_server_cleanly(folder: Path, name: str) -> None:
    with Store.open(folder / "whole") as store:
        count = len(store)
    command = [sys.executable, "-m", "btr.serve", "whole", "--reader", "1.1", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(rf"{count} passages, model 1\.1: http://127\.0\.0\.1:(\d+)\n", line)
            assert found, line
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=WAIT)
            connection.request("GET", "/health")
            with connection.getresponse() as response:
                assert response.status == 200
            connection.close()
            process.send_signal(getattr(signal, name))
            out, err = process.communicate(timeout=WAIT)
        finally:
            process.kill()
    log = [entry for line in err.splitlines() if (entry := json.loads(line))["event"] != "warm"]
    assert (process.returncode, out, [entry["event"] for entry in log]) == (0, "", ["request", "draining"])
    assert (log[0]["route"], log[0]["status"], len(log[0]["request_id"])) == ("/health", 200, 32)


@pytest.mark.int8
@pytest.mark.parametrize("editable", [False, True])
def test_service_reads_in_int8(folder: Path, editable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that edits encodes passages in the precision of the store all the same."""
    monkeypatch.delenv("BTR_DTYPE")
    service = load(Settings(store=folder / "whole", reader=str(folder / "1.1"), dtype="int8", editable=editable))
    assert any(isinstance(part, Int8Linear) for part in service.reader.model.modules())
    wanted = torch.float32 if editable else DTYPES[choose_dtype("auto", torch.device("cpu"))]
    assert service.reader.model.dtype is wanted
    [reply] = service.answer([AnswerRequest(question="Who built the lighthouse?")])
    assert isinstance(reply, AnswerResponse)


def test_service_reads_in_bfloat16_where_the_processor_multiplies_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But one that edits, in the precision of the store."""
    monkeypatch.delenv("BTR_DTYPE")
    monkeypatch.setattr("btr.model.devices.PROCESSOR", tmp_path / "cpuinfo")
    name = str(folder / "1.1")
    for flags, wanted in (("avx512_bf16", torch.bfloat16), ("avx512f", torch.float32)):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
        capsys.readouterr()
        assert load(Settings(store=folder / "whole", reader=name)).reader.model.dtype is wanted
        assert capsys.readouterr().err == f"computing in {str(wanted).removeprefix('torch.')} on cpu\n"
        assert load(Settings(store=folder / "whole", reader=name, editable=True)).reader.model.dtype is torch.float32
