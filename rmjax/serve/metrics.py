"""Counters for /metrics, in a registry of their own."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rmjax.serve.blocks import BLOCK
from rmjax.serve.ladder import Batch
from rmjax.serve.outcomes import Outcome, Refused

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"rmjax_{name}", what, labels, registry=self.registry)

        self.requests = counter("requests", "answered requests", "route", "status")
        self.items = counter("items", "items that got rewards")
        self.failures = counter("item_errors", "items that got none", "status")
        self.truncated = counter("truncated", "answers that were cut")
        self.gone = counter("clients_gone", "requests whose client left before the answer")
        self.batches = counter("batches", "calls of the model")
        self.sequences = counter("sequences", "sequences that were run; equal ones in a batch count once")
        self.unshared = counter("sequence_tokens", "tokens of these sequences")
        self.run = counter("run_tokens", "tokens that the model ran for them: common beginnings once")
        self.hits = counter("prefix_hits", "sequences of which a beginning was kept from an earlier batch")
        self.kept = counter("prefix_tokens", "tokens that were kept and not run again, once for each common beginning")
        self.padded = counter("row_tokens", "tokens of the batches, padding included")
        self.recompiles = counter("recompiles", "programs that were compiled after the start")
        self.log_errors = counter("log_errors", "lines that the request log did not take")
        self.model_seconds = counter(
            "model_seconds", "seconds of batches in the model, those at the same time each with its own"
        )
        self.seconds = Histogram(
            "rmjax_request_seconds", "seconds from a request's last byte to its reply", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"rmjax_{name}", what, registry=self.registry).set_function(value)

    def ran(self, batch: Batch, seconds: float) -> None:
        """Counts a batch."""
        groups = [group for row in batch.rows for group in row]
        self.batches.inc()
        self.sequences.inc(sum(len(group.members) for group in groups))
        past = [(len(group.members), BLOCK * len(group.past)) for group in groups]
        self.hits.inc(sum(count for count, tokens in past if tokens))
        self.kept.inc(sum(tokens for _, tokens in past))
        kept = sum(count * tokens for count, tokens in past)
        self.unshared.inc(kept + sum(g.tokens + (len(g.members) - 1) * g.shared for g in groups))
        self.run.inc(sum(group.tokens for group in groups))
        self.padded.inc(batch.shape.rows * batch.shape.row_tokens)
        self.model_seconds.inc(seconds)

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Counts items."""
        for each in outcomes:
            if isinstance(each, Refused):
                self.failures.labels(each.status).inc()
            else:
                self.items.inc()
                self.truncated.inc(sum(each.truncated))

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self.registry)
