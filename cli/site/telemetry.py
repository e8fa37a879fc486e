"""A site's telemetry: log lines as text or JSON, and metrics for Prometheus. Neither contains rows."""

import logging

from prometheus_client import Counter, Gauge, Summary, start_http_server
from transformers.utils.logging import disable_progress_bar

from core.errors import ConfigError
from core.logs import JsonLines
from tasks.forward import setup

MESSAGES = Counter("accord_site_messages", "Messages that were worked on", ["kind", "outcome"])
SECONDS = Summary("accord_site_message_seconds", "From a message's turn to its answer", ["kind"])
LAST = Gauge("accord_site_last_message_timestamp_seconds", "When the last one was answered")
LOADS = Gauge("accord_site_base_loads", "Base models that this process has loaded")
LOADS.set_function(setup.loads)


def log_as(kind: str) -> None:
    """Log to standard error as 'text' or 'json', and keep progress bars and warnings from going there otherwise."""
    disable_progress_bar()
    logging.captureWarnings(True)
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if kind == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def count(kind: str, outcome: str, seconds: float) -> None:
    """Count a message. outcome: `answered`, or the name of the error."""
    MESSAGES.labels(kind, outcome).inc()
    SECONDS.labels(kind).observe(seconds)
    LAST.set_to_current_time()


def serve(port: int) -> None:
    """Serve metrics on loopback from a thread; any path answers. Raises ConfigError if the port is taken."""
    try:
        start_http_server(port, "127.0.0.1")
    except OSError as error:
        raise ConfigError(f"metrics-port = {port}: {error.strerror}") from error
