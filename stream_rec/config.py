"""Every setting: its default, its unit, its environment name. The one place where settings are read.

A setting comes from, in this order: the command line, the environment (`STREAM_REC_` and the name in capitals), a TOML
file (`--config`, else `STREAM_REC_CONFIG`, else `stream-rec.toml` in the working folder), the default below.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_cache_path
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from stream_rec.errors import UserError
from stream_rec.messages import ERASE, ITEM_BYTES, LONGEST_LABEL
from stream_rec.window import stride_of

PREFIX = "STREAM_REC_"

BATCH_BYTES = 64 << 20
"""The default of `max_batch_bytes`, four times that of `max_message_bytes`, see there."""

HIGHEST_PORT = 65_535
Port = Annotated[int, Field(ge=0, le=HIGHEST_PORT)]
Topic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
LONGEST_RETENTION = 1e7
"""Hours. Kafka counts milliseconds in 64 bits."""


class Settings(BaseSettings):
    """All settings; frozen. Read them once, at the edge, with `load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        validate_default=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    # Kafka
    bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port, separated by commas")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="of the brokers' listener: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = Field(
        "SCRAM-SHA-512", description="how SASL proves the password: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN"
    )
    kafka_username: str | None = Field(None, min_length=1, description="user that SASL logs in as")
    kafka_password: SecretStr | None = Field(None, min_length=1, description="the user's password; rather from a file")
    kafka_password_file: Path | None = Field(None, description="file that holds the password and nothing else")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file of the certificates that are trusted [default: the system's]"
    )
    kafka_cert_file: Path | None = Field(None, description="PEM file of a certificate of our own and its chain")
    kafka_key_file: Path | None = Field(None, description="PEM file of its key [default: kafka_cert_file]")
    kafka_key_password_file: Path | None = Field(None, description="file that holds the key's password")
    events_topic: Topic = Field("events", description="topic that holds what users do")
    windows_topic: Topic = Field("windows", description="topic of the users' windows (changelog and work queue)")
    items_topic: Topic = Field("items", description="topic of the catalogue")
    recommendations_topic: Topic = Field("recommendations", description="topic that answers are written to")
    dead_letter_topic: Topic = Field("dead-letter", description="topic of records that could not be read")
    partitions: int = Field(4, ge=1, le=10_000, description="partitions of each topic when it is created")
    replication_factor: int = Field(1, ge=1, le=32, description="copies of each partition when it is created")
    retention_hours: float = Field(
        168, gt=0, le=LONGEST_RETENTION, description="how long events and dead letters are kept, hours"
    )
    max_message_bytes: int = Field(
        16 << 20, ge=1 << 16, le=1 << 30, description="largest record that the topics accept, bytes"
    )
    max_batch_bytes: int = Field(
        BATCH_BYTES,
        ge=1 << 20,
        le=1 << 30,
        description="largest batch of records that is read, bytes when decompressed: a larger one is a dead letter",
    )

    fail_fast: bool = Field(
        False, description="end at once, with exit code 2, where no broker answers at the start: else wait for one"
    )

    # Events and windows
    event_types: Annotated[tuple[str, ...], NoDecode] = Field(
        ("click", "view", "cart", "purchase"), min_length=1, description="accepted event types, separated by commas"
    )
    max_event_bytes: int = Field(65_536, ge=64, description="largest event that is read, bytes")
    max_item_bytes: int = Field(ITEM_BYTES, ge=64, description="largest catalogue entry that is read, bytes")
    max_future_s: float = Field(300, ge=0, description="how far ahead of the clock an event may be, seconds")
    capacity: int = Field(64, ge=2, le=4_096, description="most events in a window")
    stride: int | None = Field(None, ge=1, description="how far a full window moves, events [default: capacity / 2]")
    store: Literal["memory", "rocksdb"] = Field("memory", description="where an agent keeps its windows")
    pseudonym_key_file: Path | None = Field(
        None,
        description="file of a secret key of 16 to 64 bytes: agents put a keyed hash in the place of each user id "
        "[default: ids as they come]",
    )
    agents_group: str = Field("stream-rec-agents", min_length=1, description="consumer group of the agents")
    agents_metrics_port: Port = Field(9101, description="port of the agents' /metrics; 0 takes any free one")
    standby_replicas: int = Field(0, ge=0, le=8, description="other agents that keep a warm copy of each table")

    # Worker
    worker_group: str = Field("stream-rec-worker", min_length=1, description="consumer group of the workers")
    worker_metrics_port: Port = Field(9102, description="port of the worker's /metrics; 0 takes any free one")
    token_budget: int = Field(
        4_096, ge=1, description="most new tokens of one step; a window that needs more makes a step of its own"
    )
    batch_windows: int = Field(256, ge=1, le=100_000, description="most windows in one step")
    linger_ms: float = Field(5, ge=0, le=10_000, description="how long a step waits for more windows, milliseconds")
    coalesce: bool = Field(True, description="answer a burst of one user's events by its newest alone")
    top_k: int = Field(20, ge=1, le=1_000, description="items in a recommendation")
    interests_k: int = Field(5, ge=0, le=100, description="interests in a recommendation")
    index: Literal["auto", "exact", "ann"] = Field(
        "auto",
        description="score all items (exact) or those that an index finds (ann); auto: ann above 50,000 items on a CPU",
    )
    index_effort: float = Field(
        1, gt=0, le=100, description="how much the index reads: more finds more and takes longer, 1 is usual"
    )
    recall_share: float = Field(
        0.001, ge=0, le=1, description="share of the windows whose items are found without the index too, and compared"
    )
    learn_per_day: int = Field(
        500,
        ge=1,
        description="events of one user that teach the statistics at once, and as many each day after that",
    )
    exclude_seen: bool = Field(False, description="leave out items that are in the user's window")
    categories: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="categories that are recommended, separated by commas [default: all]"
    )
    diversity: float = Field(
        0, ge=0, le=1, description="how much unlike each other the items should be: 0 takes the best, 1 the most unlike"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    audit_share: float = Field(
        0.001,
        ge=0,
        le=1,
        description="share of the windows that are computed in full too, and compared; of one step at most "
        "token_budget tokens, or one window",
    )
    threads: int = Field(
        1, ge=1, le=1_024, description="CPU threads of torch; more than 1 only on a machine of its own"
    )
    kv_cache_gb: float = Field(1, gt=0, description="memory for cached keys and values, GB (10^9 bytes)")
    kv_cache_share: float | None = Field(
        None, gt=0, lt=1, description="the same as a share of the device's memory; wins over kv_cache_gb"
    )
    kv_host_gb: float = Field(
        0, ge=0, description="memory of the host for users whom a GPU's cache has no room for, GB (10^9 bytes)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of cached keys and values, and on a GPU of the decoder; auto is float32, on a GPU bfloat16",
    )

    memory: Literal["all", "own"] = Field(
        "all",
        description="what the online memory learns from: all partitions of the windows topic, or each partition's own "
        "from that one alone, so that an answer is a function of its partition",
    )

    # Model and catalogue
    model: Path = Field(Path("model"), description="folder of the trained model, or a link to it")
    watch_model_s: float = Field(
        5, ge=0, le=86_400, description="time between looks for a new model in the folder, seconds; 0: only at SIGHUP"
    )
    text_encoder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        min_length=1,
        description="sentence-transformers name or folder, for training; a model keeps its own",
    )

    # Console
    console_host: str = Field("127.0.0.1", min_length=1, description="address that the console listens on")
    console_port: Port = Field(8090, description="port of the console; 0 takes any free one")

    # Everything
    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("stream_rec"), description="folder for text vectors and local state"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address that /metrics listens on")
    ready_lag: int = Field(
        10_000, ge=0, description="most records that may wait in a process's partitions while /readyz says yes"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log record shown")

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        check_servers(value)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are no value of it")
        return value

    @field_validator("event_types")
    @classmethod
    def _distinct_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name == ERASE:
                raise ValueError(f"{ERASE!r} is no type of its own: such an event erases its user")
            if len(name) > LONGEST_LABEL:
                raise ValueError(f"no event has a type of more than {LONGEST_LABEL} characters")
        if len(set(value)) < len(value):
            raise ValueError("one type is named twice")
        return value

    @field_validator("event_types", "categories", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stride is not None and self.stride > self.capacity:
            raise ValueError(f"stride {self.stride} is larger than capacity {self.capacity}")
        topics = self.topics
        if len({name.replace(".", "_") for name in topics}) < len(topics):  # Kafka's metrics know no dots
            raise ValueError(f"two topics have the same name, or differ in dots and underscores: {', '.join(topics)}")
        for name in topics:
            if name in (".", "..") or name.startswith("__"):
                raise ValueError(f"topic {name!r}: Kafka takes no such name, or keeps such a topic for itself")
        self._check_security()
        return self

    def _check_security(self) -> None:
        protocol = self.kafka_security_protocol
        if protocol.startswith("SASL"):
            if self.kafka_username is None:
                raise ValueError(f"{protocol} needs kafka_username")
            if (self.kafka_password is None) == (self.kafka_password_file is None):
                raise ValueError(f"{protocol} needs one of kafka_password_file and kafka_password")
        if self.kafka_cert_file is None and (self.kafka_key_file or self.kafka_key_password_file):
            raise ValueError("a key needs kafka_cert_file")

    @property
    def effective_stride(self) -> int:
        """The stride in force, events."""
        return stride_of(self.capacity, self.stride)

    @property
    def topics(self) -> tuple[str, ...]:
        return (
            self.events_topic,
            self.windows_topic,
            self.items_topic,
            self.recommendations_topic,
            self.dead_letter_topic,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, then the TOML file, whose settings `load` passes as `_toml`."""
        given = dict(init_settings()) if isinstance(init_settings, InitSettingsSource) else {}
        in_file = given.pop("_toml", {})
        return InitSettingsSource(settings_cls, given), env_settings, InitSettingsSource(settings_cls, in_file)


def check_servers(text: str) -> None:
    """Raises `ValueError` for what is no list of host:port; the port may be left out."""
    for server in text.split(","):
        found = re.fullmatch(r"(\[[\da-fA-F:.%\w]+\]|[\w.-]+)(?::(\d+))?", server.strip())
        if found is None:
            raise ValueError(f"{server.strip()!r} is not of the form host:port")
        if found[2] and not 1 <= int(found[2][:6]) <= HIGHEST_PORT:
            raise ValueError(f"the port of {server.strip()!r} is not between 1 and {HIGHEST_PORT:,}")


def environment_name(setting: str) -> str:
    """`STREAM_REC_TOP_K` for `top_k`."""
    return PREFIX + setting.upper()


def environment(settings: Settings) -> dict[str, str]:
    """The settings that were given as environment variables of another process, the password among them."""
    return {
        environment_name(name): _text(value)
        for name, value in settings.model_dump(exclude_unset=True).items()
        if value is not None
    }


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """The settings in force; `given` (from the command line) wins, its None values are left out.

    Raises `UserError` in one line that names the setting.
    """
    path = config or (Path(named) if (named := os.environ.get(PREFIX + "CONFIG")) else None)
    if path is not None and not path.is_file():
        raise UserError(f"no settings file at {path}: create it, or leave out --config and {PREFIX}CONFIG")
    if path is None and (here := Path("stream-rec.toml")).is_file():
        path = here
    known = set(Settings.model_fields) | {"config"}
    for name in os.environ:
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in known:
            raise UserError(f"{name} is no setting: see 'stream-rec settings' for the names")
    try:
        chosen = {name: value for name, value in given.items() if value is not None}
        return Settings(_toml={} if path is None else _read(path), **chosen)  # type: ignore[call-arg]
    except ValidationError as error:
        raise UserError("; ".join(_line(one) for one in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, also of one that begins with the mark that some editors put there."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: it is not UTF-8: save it so") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {str(error) or 'it is no TOML'}") from None


def _line(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    text = str(error["msg"]).removeprefix("Value error, ")
    if not name:
        return f"settings: {text}"
    if error["type"] == "extra_forbidden":
        return f"setting {name}: there is no such setting; see 'stream-rec settings' for the names"
    got = "" if name == "kafka_password" else f", got {error['input']!r}"
    return f"setting {name} ({environment_name(name)}): {text}{got}"
