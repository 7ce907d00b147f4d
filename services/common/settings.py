"""Settings that every service shares. Each is an environment variable ``TWOTRUTHS_<NAME>``; a service's own
settings extend this class in its ``config.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommonSettings(BaseSettings):
    """Where the dependencies are, how callers prove who they are, and how to say what happens."""

    model_config = SettingsConfigDict(env_prefix="TWOTRUTHS_", extra="ignore", frozen=True)

    nats_url: str = Field("nats://127.0.0.1:4222", description="NATS servers, comma-separated")
    nats_replicas: int = Field(1, ge=1, le=5, description="replicas of streams and buckets (3 on a cluster)")
    data_dir: Path = Field(Path(".mesh/data"), description="where the directory stores keep parts and objects")

    s3_bucket: str = Field("", description="bucket for parts and objects; empty: the data directory")
    s3_endpoint_url: str = Field("", description="an S3 server; empty: AWS")
    s3_region: str = Field("us-east-1", description="the bucket's region")
    s3_access_key_id: str = Field(
        "", description="access key; empty: what the AWS SDK finds (role, profile, environment)"
    )
    s3_secret_access_key: SecretStr = Field(SecretStr(""), description="its secret")
    s3_path_style: bool = Field(
        False, description="whether the bucket's name goes into the path, not the host name"
    )
    s3_checksums: Literal["when_required", "when_supported"] = Field(
        "when_required", description="when requests carry a checksum that the server verifies"
    )
    s3_sign_payload: bool = Field(
        False, description="whether bodies are part of the signature (costs a digest more)"
    )
    s3_connections: int = Field(128, ge=8, description="most connections of a process to the S3 server")
    s3_create_bucket: bool = Field(False, description="whether a bucket that is missing is made (development)")

    upload_target: str = Field("dns:///127.0.0.1:50051", description="the upload service, as a gRPC target")
    merge_target: str = Field("dns:///127.0.0.1:50052", description="the merge service, as a gRPC target")
    challenge_target: str = Field("dns:///127.0.0.1:50053", description="the challenge service, as a gRPC target")

    tls_cert_file: str = Field(
        "", description="PEM certificate chain that this process shows to the others; empty: plaintext gRPC"
    )
    tls_key_file: str = Field("", description="its private key")
    tls_ca_file: str = Field("", description="PEM certificates of the authority that signs those of the mesh")

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

    media_delivery: Literal["gateway", "s3", "cdn"] = Field(
        "gateway",
        description="who delivers videos: the gateway, S3 (presigned URLs), CloudFront (signed URLs)",
    )

    log_format: Literal["console", "json"] = Field("console", description="how log lines look")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged")
    metrics_listen: str = Field(
        "", description="address and port of Prometheus metrics, for each process its own; empty is off"
    )
    traces_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^/@\s]+)?$",
        description="OTLP collector that takes traces by gRPC (http://localhost:4317, or https); empty is off",
    )
    traces_ratio: float = Field(1.0, ge=0, le=1, description="what part of the traces is kept, from 0 to 1")
    reflection: bool = Field(True, description="whether servers describe themselves (grpcurl)")
    admin_listen: str = Field(
        "",
        description="address and port of health, channelz and reflection for operators, in plaintext and without "
        "tokens, for each process its own; empty is off",
    )
    drain_wait_seconds: float = Field(0.0, ge=0, description="after SIGTERM: health is off, yet calls are served")
    drain_grace_seconds: float = Field(20.0, ge=0, description="then: how long calls may take to end")
