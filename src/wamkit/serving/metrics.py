"""What a server counts, in the text form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counters of one server; each has its own registry, so that several may live in one process."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "wamkit_requests",
            "Requests by dialect and outcome (ok or the kind of error).",
            ["dialect", "outcome"],
            registry=registry,
        )
        self.latency = Histogram(
            "wamkit_request_seconds",
            "From a request's arrival to its answer.",
            ["dialect"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.policy = Histogram(
            "wamkit_policy_seconds", "Time of one policy call.", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "wamkit_batch_size", "Robots in one policy call.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.connections = Gauge(
            "wamkit_connections", "Open connections and HTTP sessions.", ["dialect"], registry=registry
        )
        self.episodes = Counter("wamkit_episodes", "Episodes begun.", ["dialect"], registry=registry)
        self.waiting = Gauge("wamkit_waiting_requests", "Requests that wait for the policy.", registry=registry)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
