"""What one client may cost: every time, size and count of the front end's connections, in one place.

The application's own bounds (JSON, packs, fetches) are settings and live in ``node.config``; these are properties of HTTP
itself, with the precedents they were taken from. ``Limits.of`` joins the two.
"""

from dataclasses import dataclass

from node.config import Config


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one listening socket. Times in seconds."""

    connections_max: int = 512
    """Connections served at once; the next ones hear 503 and are closed."""
    crowded_share: float = 0.5
    """Above this share of ``connections_max``, clients that send no whole request are given ``crowded_patience_s`` only."""
    crowded_patience_s: float = 2.0
    leaving_max: int = 128
    """Refused connections that are still being told so; beyond this they are reset without a word."""
    header_timeout_s: float = 10.0
    """From the first moment of waiting on a fresh connection, or the first byte on an old one, to the end of the headers
    (nginx: 60, Apache mod_reqtimeout: 20; a git client sends them in one packet)."""
    keep_alive_s: float = 30.0
    """A connection without a request; longer than aiohttp's 15, so that a peer's pool never meets a closing socket."""
    body_stall_s: float = 30.0
    """Time spent waiting for a request body in which at least ``body_bytes_min`` must arrive (``Config.body_timeout_s``)."""
    body_bytes_min: int = 1024
    write_stall_s: float = 30.0
    """Time in which a client that does not read must take at least ``write_bytes_min`` of what is buffered for it."""
    write_bytes_min: int = 16 * 1024
    linger_s: float = 2.0
    """How long what a refused client still sends is read and dropped, so that a TCP reset does not destroy the answer."""
    linger_bytes_max: int = 4 * 1024**2
    header_bytes_max: int = 32 * 1024
    header_count_max: int = 100
    target_bytes_max: int = 8 * 1024
    chunk_overhead_max: int = 64 * 1024
    """Bytes of chunk sizes, extensions and trailers allowed beyond sixteen for each byte of body."""
    drain_s: int = 10
    """At SIGTERM: how long requests under way may take to finish."""

    @classmethod
    def of(cls, config: Config) -> "Limits":
        return cls(connections_max=config.connections_max, body_stall_s=config.body_timeout_s)
