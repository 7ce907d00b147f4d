"""Settings that every service shares. Each is an environment variable ``TWOTRUTHS_<NAME>``; a service's own
settings extend this class in its ``config.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommonSettings(BaseSettings):
    """Where the dependencies are, how callers prove who they are, and how to say what happens."""

    model_config = SettingsConfigDict(env_prefix="TWOTRUTHS_", extra="ignore", frozen=True)

    nats_url: str = Field("nats://127.0.0.1:4222", description="NATS servers, comma-separated")
    nats_replicas: int = Field(1, ge=1, le=5, description="replicas of streams and buckets (3 on a cluster)")
    data_dir: Path = Field(Path(".mesh/data"), description="where the directory stores keep parts and objects")

    upload_target: str = Field("dns:///127.0.0.1:50051", description="the upload service, as a gRPC target")
    merge_target: str = Field("dns:///127.0.0.1:50052", description="the merge service, as a gRPC target")
    challenge_target: str = Field("dns:///127.0.0.1:50053", description="the challenge service, as a gRPC target")

    auth_issuer: str = Field("twotruths-dev", description="iss of players' tokens")
    auth_audience: str = Field("twotruths", description="aud of players' tokens")
    auth_algorithm: Literal["EdDSA", "ES256", "RS256"] = Field(
        "EdDSA", description="the one signature algorithm that is accepted"
    )
    auth_jwks: str = Field(".mesh/keys/players.jwks.json", description="players' key set: a file or an https URL")
    service_jwks: str = Field(".mesh/keys/services.jwks.json", description="services' key set: a file or a URL")
    service_key_file: Path = Field(
        Path(".mesh/keys/services.pem"), description="private key that signs this service's own tokens"
    )
    playback_keys_file: Path = Field(
        Path(".mesh/keys/playback.json"),
        description="keys of signed playback URLs, {key id: hex}; the first signs",
    )

    log_format: Literal["console", "json"] = Field("console", description="how log lines look")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged")
    metrics_listen: str = Field("", description="address and port of Prometheus metrics; empty is off")
    reflection: bool = Field(True, description="whether servers describe themselves (grpcurl)")
    drain_wait_seconds: float = Field(0.0, ge=0, description="after SIGTERM: health is off, yet calls are served")
    drain_grace_seconds: float = Field(20.0, ge=0, description="then: how long calls may take to end")
