"""A server over a real loopback socket, with doubles for the reader, the store and the index."""

import http.client
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn

from btr.errors import InputError
from btr.reader.answer import Answer, Span
from btr.serve import Dispatcher, OpenStore, Service, Settings, create_app
from btr.serve.keys import Keys
from btr.serve.server import bind, make_config
from btr.storage import Encoded, UnknownId

D = 64
TOKENS = 5  # per passage
WAIT = 900  # seconds, for what takes milliseconds on a machine with nothing else to do
TITLES = ("Tides", "Harbours", "Lighthouses", "Winds")
TEXTS = (
    "The moon raises the tides.",
    "A harbour wall, drawn by Ada Berg, keeps the swell out.",
    "Ada\n Berg built the first lighthouse; ADA-BERG lamps 🚢 followed. <script>alert(1)</script>",
    "The trade winds blow from the east.",
)


def make_encoded(ordinals: Sequence[int], texts: Sequence[str]) -> Encoded:
    count = len(ordinals) * TOKENS
    return Encoded(
        fingerprint="f" * 16,
        D=D,
        ids=tuple(f"p{i}" for i in ordinals),
        titles=tuple(TITLES[i] for i in ordinals),
        texts=tuple(texts[i] for i in ordinals),
        lengths=np.full(len(ordinals), TOKENS, np.int32),
        token_ids=np.zeros(count, np.uint32),
        scale=np.ones(count, np.float16),
        packed=np.zeros((count, 1), np.uint64),
        states=None,
    )


class FakeStore:
    """Hold the four passages above."""

    def __init__(self, texts: Sequence[str] = TEXTS) -> None:
        self.texts = texts
        self.manifest = SimpleNamespace(
            passages=len(texts), tokens=len(texts) * TOKENS, ordinals=len(texts), options={}
        )

    def __len__(self) -> int:
        return len(self.texts)

    def ids(self) -> Iterator[str]:
        return (f"p{i}" for i in range(len(self)))

    def live(self) -> Iterator[int]:
        """Yield the ordinals of all passages."""
        return iter(range(len(self)))

    def at(self, ordinals: Sequence[int]) -> Encoded:
        return make_encoded(ordinals, self.texts)

    def get(self, ids: Sequence[str]) -> Encoded:
        known = list(self.ids())
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise UnknownId(f"no passage {unknown[0]!r} in /secret/place", tuple(unknown))
        return self.at([known.index(name) for name in ids])


class FakeIndex:
    """Find the passages in the order 3 2 1 0, and none for a question of strange words."""

    def __len__(self) -> int:
        return len(TEXTS)

    def search(self, questions: Sequence[str], top: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found = [] if "xyzzy" in questions[0] else [3, 2, 1, 0][:top]
        return [(np.array(found, np.int64), np.array(found, np.float32) + 10) for _ in questions]


class FakeReader:
    """Answer "Ada Berg", with most evidence in the passage that comes second; keep what it was asked.

    `during` is called for every batch, `gate` holds it up before its first words and `end` after the last, while shut.
    """

    D = bits = D
    name = "double"
    family = "generative"
    fingerprint = "f" * 16
    config = SimpleNamespace(passages=3, max_passage_tokens=160, max_question_tokens=64)
    no_answer_above: float | None = None

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str, int]] = []
        self.batches: list[list[str]] = []
        self.span: Span | None = None
        self.during: Callable[[], object] = lambda: None
        self.longest = 64  # words of a question
        self.pieces: tuple[str, ...] = ()  # words told before the answer
        self.gate, self.end = threading.Event(), threading.Event()
        self.gate.set()
        self.end.set()

    def question_ids(self, question: str) -> list[int]:
        if len(question.split()) > self.longest:
            raise InputError(f"the question has {len(question.split())} tokens, this reader reads {self.longest}")
        return [0] * len(question.split())

    def answer_batch(
        self,
        questions: Sequence[str],
        sources: Sequence[Any],
        mode: str,
        max_new_tokens: int,
        merge: object,
        prune: int,
        listener: Any = None,
        no_answer_above: float | None = None,
        choices: Sequence[Sequence[str]] | None = None,
        kept: object = None,
    ) -> list[Answer]:
        assert no_answer_above == 1.0  # the service itself decides
        self.batches.append(list(questions))
        self.during()
        assert self.gate.wait(WAIT)
        for b in range(len(questions)):
            for words in self.pieces:
                listener.words(b, words)
        assert self.end.wait(WAIT)
        return [self.answer(*pair, mode, max_new_tokens) for pair in zip(questions, sources, strict=True)]

    def answer(self, question: str, source: Any, mode: Any, max_new_tokens: int) -> Answer:
        self.asked.append((question, source, mode, max_new_tokens))
        count = len(source)
        evidence = np.full(count, 0.4 / max(count - 1, 1), np.float32)
        evidence[min(1, count - 1)] = 0.6
        timings = {"tokenize": 0.001, "expand": 0.002, "look": 0.006, "encode": 0.003, "merge": 0.004, "decode": 0.005}
        attention = (np.zeros(TOKENS, np.float32),) * count
        return Answer(
            text="Ada Berg", score=-0.25, timings=timings, mode=mode, evidence=evidence, token_evidence=attention,
            span=self.span, read=count, no_answer=None if self.span is None else 0.25, tokens=(7, 8),
        )  # fmt: skip


def send(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Return (status, headers, parsed JSON or text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        body = json.dumps(body) if isinstance(body, dict) else body
        connection.request(method, path, body, headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        parsed = json.loads(text) if response.headers["content-type"].startswith("application/json") else text
        return response.status, response.headers, parsed
    finally:
        connection.close()


def ask(port: int, **request: Any) -> dict[str, Any]:
    """Return the answer to a question."""
    status, _, reply = send(port, "POST", "/v1/answer", {"question": "Who?"} | request)
    assert status == 200, reply
    return reply


def make_desk(
    reader: FakeReader, texts: Sequence[str] = TEXTS, keys: Keys | None = None, warm: bool = True, **settings: Any
) -> Dispatcher:
    """Put the doubles behind a dispatcher."""
    doubles: Any = (reader, OpenStore(FakeStore(texts), FakeIndex()))
    return Dispatcher(Service(*doubles, Settings(**({"top": 3} | settings)), model="double"), keys, warm=warm)


@contextmanager
def serving(dispatcher: Dispatcher) -> Iterator[int]:
    """Serve on a free loopback port from a thread, and give the port."""
    server = uvicorn.Server(make_config(dispatcher, create_app(dispatcher)))
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


class Page:
    """The page, and what a person does with it."""

    def __init__(self, browser: Any, port: int) -> None:
        self.browser = browser
        browser.get_log("browser")  # of the page before
        browser.get(f"http://127.0.0.1:{port}/")

    def find(self, selector: str) -> Any:
        """Return what a selector names."""
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        """Return all that a selector names."""
        return self.browser.find_elements("css selector", selector)

    def wait(self, true: Callable[[], object]) -> None:
        """Wait until something is true."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        gone = [StaleElementReferenceException]  # drawn anew while it was looked at
        WebDriverWait(self.browser, 60, ignored_exceptions=gone).until(lambda _: true())

    def text(self, selector: str) -> str:
        """Return a text, hidden or not."""
        return self.find(selector).get_attribute("textContent")

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns."""
        return self.browser.execute_script(script, *arguments)

    def ask(self, question: str) -> None:
        """Ask, and wait for the answer or what is in its place."""
        box = self.find("#question")
        box.clear()
        box.send_keys(question + "\n")
        self.wait(lambda: not self.find("#progress").is_displayed())

    def answer_with(self, reply: dict[str, Any]) -> None:
        """Let the next questions have this reply, whatever they are."""
        sent = json.dumps(f"event: answer\ndata: {json.dumps(reply)}\n\n")
        self.run(f"window.fetch = async () => new Response({sent})")

    def focused(self) -> str:
        """Return the id of what has the focus."""
        return self.browser.switch_to.active_element.get_attribute("id")

    @contextmanager
    def on_phone(self, width: int) -> Iterator[None]:
        """Make the window a phone's."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield
        self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    @contextmanager
    def in_colours(self, scheme: str) -> Iterator[None]:
        """Prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


class Kit(SimpleNamespace):
    """What the tests of the server share, for they cannot import one another."""

    D, TOKENS, WAIT, TITLES, TEXTS = D, TOKENS, WAIT, TITLES, TEXTS
    FakeReader = FakeReader
    Page = Page
    serving: Callable[[Dispatcher], AbstractContextManager[int]] = staticmethod(serving)
    make_desk = staticmethod(make_desk)
    send = staticmethod(send)
    ask = staticmethod(ask)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    """The doubles, and ways to talk to the server."""
    return Kit


@pytest.fixture
def reader() -> FakeReader:
    """A fresh reader."""
    return FakeReader()


@pytest.fixture
def dispatcher(reader: FakeReader) -> Dispatcher:
    """A dispatcher with narrow limits."""
    return make_desk(reader, max_body_bytes=10_000, max_passages=3, max_new_tokens=64, max_question_chars=200)


@pytest.fixture
def port(dispatcher: Dispatcher) -> Iterator[int]:
    """The port of its server."""
    with serving(dispatcher) as taken:
        yield taken


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser without a window."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on the PATH (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    flags = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")
    for flag in (*flags, "disable-dev-shm-usage", f"user-data-dir={profile}", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser: Any, port: int) -> Page:
    """The page in that browser."""
    return Page(browser, port)
