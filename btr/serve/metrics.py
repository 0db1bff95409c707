"""Count what the server does, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily

from btr.serve.schema import AnswerResponse

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The server's numbers, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("btr_requests", "Requests by route and status", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "btr_request_seconds", "Seconds from request to reply", ["route"], buckets=SECONDS, registry=registry
        )
        self.errors = Counter("btr_errors", "Refusals and failures by code", ["code"], registry=registry)
        self.waited = Histogram("btr_queue_seconds", "Seconds in line", buckets=SECONDS, registry=registry)
        self.phase = Histogram(
            "btr_phase_seconds", "Seconds of a batch by phase", ["phase"], buckets=SECONDS, registry=registry
        )
        self.together = Histogram(
            "btr_batch_questions", "Questions read together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.left = Counter("btr_abandoned", "Questions whose client left before the answer", registry=registry)
        self.abstained = Counter("btr_abstained", "Questions that got a best guess alone", registry=registry)
        self.tokens = Counter("btr_tokens_read", "Passage tokens read", registry=registry)
        self.bits = Counter("btr_bits_read", "Stored signs read", registry=registry)
        self.reloads = Counter("btr_reloads", "Reloads of the store by outcome", ["outcome"], registry=registry)
        self.edits = Counter("btr_edits", "Passages added, replaced, ... by edits", ["kind"], registry=registry)
        ProcessCollector(registry=registry)

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a number that is asked for when it is looked at."""
        Gauge(name, about, registry=self.registry).set_function(read)

    def count(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Show what somebody else counts, by the values of a label."""
        self.registry.register(_Counted(name, about, label, read))

    def count_batch(self, answers: list[AnswerResponse], waits: list[float]) -> None:
        """Count what one batch took; phases of the reader are shared by all its questions."""
        for wait in waits:
            self.waited.observe(wait)
        if not answers:
            return
        self.together.observe(len(answers))
        for phase, seconds in answers[0].timings.items():
            self.phase.labels(phase).observe(seconds)
        for answer in answers:
            self.tokens.inc(answer.tokens_read)
            self.bits.inc(answer.bits_read)
            self.abstained.inc(answer.best_guess is not None)

    def render(self) -> bytes:
        """Write all numbers as Prometheus reads them."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class _Counted:
    """Hand on what is counted elsewhere (prometheus_client's `Collector`)."""

    name: str
    about: str
    label: str
    read: Callable[[], Mapping[str, float]]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the numbers as they are now."""
        family = CounterMetricFamily(self.name, self.about, labels=[self.label])
        for value, number in self.read().items():
            family.add_metric([value], number)
        yield family
