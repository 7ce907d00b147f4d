"""The gateway's settings."""

from __future__ import annotations

from pydantic import Field

from services.common.identity import MAX_TOKEN_BYTES
from services.common.settings import CommonSettings

MIB = 1 << 20


class GatewaySettings(CommonSettings):
    """Where the gateway listens, and the bounds of what it takes from strangers."""

    gateway_listen: str = Field("127.0.0.1:8080", description="where the gateway listens; port 0 picks a free one")
    gateway_processes: int = Field(
        1, ge=1, le=256, description="processes that serve this address; metrics of number i are i ports higher"
    )
    gateway_trusted_proxies: str = Field(
        "",
        description="networks of the proxies whose X-Forwarded-For or Forwarded counts (`10.0.0.0/8,fd00::/8`)",
    )
    gateway_continue_traces: bool = Field(
        False,
        description="whether traces go on that a trusted proxy's requests belong to; only if it replaces the "
        "traceparent of its clients",
    )
    gateway_requests_per_second_user: float = Field(
        200.0, ge=0, le=1e6, description="requests that a player may make in the long run; 0: any number"
    )
    gateway_burst_user: int = Field(2000, ge=1, description="requests that a player may make at once")
    gateway_requests_per_second_address: float = Field(
        100.0,
        ge=0,
        le=1e6,
        description="requests without a token that counts, from an IPv4 address or IPv6 /64; 0: any number",
    )
    gateway_burst_address: int = Field(1000, ge=1, description="such requests at once")
    gateway_guest_key_file: str = Field(
        "",
        description="private key (PEM) with which `POST /api/v1/guest` signs a token for whoever asks: "
        "for development alone; empty: there is no such route",
    )
    gateway_guest_seconds: int = Field(86_400, gt=0, description="how long a guest's token counts")
    gateway_guests_per_minute_address: float = Field(
        6.0, gt=0, le=1e6, description="guests from an IPv4 address or IPv6 /64, in the long run; ten at once"
    )
    gateway_max_body_bytes: int = Field(MIB, gt=0, description="largest JSON or form body")
    gateway_max_chunk_bytes: int = Field(64 * MIB, gt=0, description="largest body of a chunk request")
    gateway_max_path_bytes: int = Field(4096, gt=0, description="longest path with query")
    gateway_max_token_bytes: int = Field(
        MAX_TOKEN_BYTES, gt=0, le=MAX_TOKEN_BYTES, description="longest bearer token; services take no longer one"
    )
    gateway_call_timeout_seconds: float = Field(60.0, gt=0, description="deadline of a call to a service")
    gateway_chunk_timeout_seconds: float = Field(600.0, gt=0, description="longest time a chunk request may take")
    gateway_append_timeout_seconds: float = Field(
        3600.0, gt=0, description="longest time a request may take that appends to an upload (tus, RUFH)"
    )
    gateway_read_timeout_seconds: float = Field(12.0, gt=0, description="longest silence within a request body")
    gateway_body_timeout_seconds: float = Field(
        60.0, gt=0, description="longest time a JSON or form body may take"
    )
    gateway_write_timeout_seconds: float = Field(
        60.0, gt=0, description="after which a client that takes nothing of its answer is cut off"
    )
    gateway_head_seconds: float = Field(10.0, gt=0, description="longest time the head of a request may take")
    gateway_max_connections: int = Field(
        4096, ge=1, description="most connections at once, of one process; those over it are 503"
    )
    gateway_max_connections_address: int = Field(
        1024,
        ge=1,
        description="most of them from one IPv4 address or IPv6 /64, but for gateway_trusted_proxies; "
        "many players may share an address",
    )
    gateway_keepalive_seconds: float = Field(75.0, gt=0, description="how long an idle connection stays open")
    gateway_heartbeat_seconds: float = Field(15.0, gt=0, description="between heartbeats of an event stream")
    gateway_access_cache_seconds: float = Field(3.0, ge=0, description="how long who may see a file is remembered")
    gateway_store_readers: int = Field(
        112, ge=1, description="most downloads from S3 at once, fewer than s3_connections; the next ones wait"
    )
    gateway_store_readers_user: int = Field(
        8, ge=1, description="most of them of one player; those over it are 429"
    )
    gateway_store_readers_address: int = Field(
        32, ge=1, description="most of them without a token that counts, of one IPv4 address or IPv6 /64"
    )
    gateway_store_least_bytes_per_second: int = Field(
        4096,
        ge=0,
        description="a download from S3 whose client takes less over a minute is cut off; 0: as slow as it likes",
    )
    gateway_store_wait_seconds: float = Field(
        5.0, ge=0, description="how long a download waits for its turn until it is 503"
    )
    media_redirect: bool = Field(
        False,
        description="whether a signed URL of a video answers 302 to whom media_delivery names, "
        "instead of passing the bytes on",
    )
    gateway_hsts_seconds: int = Field(
        0,
        ge=0,
        description="how long browsers shall ask by https alone (Strict-Transport-Security), if all clients may; "
        "0: not told",
    )
    gateway_cors_origins: str = Field(
        "", description="sites whose pages may read answers (`https://a.example,http://localhost:5173`, or `*`)"
    )

    @property
    def hsts(self) -> str:
        """The value of Strict-Transport-Security (RFC 6797), or ""."""
        return f"max-age={self.gateway_hsts_seconds}" if self.gateway_hsts_seconds else ""

    @property
    def store_readers(self) -> int:
        """Below the connections that there are: a download that waited for one would wait for ever."""
        return max(1, min(self.gateway_store_readers, self.s3_connections - 4))
