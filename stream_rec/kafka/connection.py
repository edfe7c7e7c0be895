"""The way to Kafka: what every client here connects with, and a first knock that says in one line what is wrong."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslAuthenticateRequest

from stream_rec.config import Settings, check_servers, environment_name
from stream_rec.errors import NoBrokerError, UserError
from stream_rec.kafka.aiokafka_compat import correct, create_conn

Access = Mapping[str, Any]
"""aiokafka's arguments for reaching a broker: where it is, how it is trusted, who we are. Holds the password."""


def access(settings: Settings) -> dict[str, Any]:
    """The arguments for a client. Files are read at each call: the next client has what was renewed.

    Raises `UserError` for a file that can't be used.
    """
    protocol = settings.kafka_security_protocol
    given: dict[str, Any] = {"bootstrap_servers": settings.bootstrap_servers, "security_protocol": protocol}
    if protocol.endswith("SSL"):
        given["ssl_context"] = _tls(settings)
    if protocol.startswith("SASL"):
        logging.getLogger("aiokafka.conn").addFilter(_tells_no_password)
        given["sasl_mechanism"] = settings.kafka_sasl_mechanism
        given["sasl_plain_username"] = settings.kafka_username
        given["sasl_plain_password"] = _password(settings)
    return given


def _tls(settings: Settings) -> ssl.SSLContext:
    """Checks the broker's certificate and name, and shows a certificate of our own if there is one."""
    with _usable("kafka_ca_file", settings.kafka_ca_file):
        context = ssl.create_default_context(cafile=settings.kafka_ca_file)
    own, key, secret = settings.kafka_cert_file, settings.kafka_key_file, settings.kafka_key_password_file
    if own is not None:
        password = _no_password if secret is None else _secret("kafka_key_password_file", secret)
        with _usable("kafka_cert_file", own):
            own.read_bytes()
        with _usable("kafka_cert_file" if key is None else "kafka_key_file", key or own):
            context.load_cert_chain(own, key, password)
    return context


def _no_password() -> str:
    """Without it, OpenSSL would ask at the terminal."""
    raise ValueError(f"the key is encrypted, give {environment_name('kafka_key_password_file')}")


def _password(settings: Settings) -> str:
    if settings.kafka_password is not None:
        return settings.kafka_password.get_secret_value()
    return _secret("kafka_password_file", settings.kafka_password_file)


def _secret(setting: str, path: Path | None) -> str:
    """What a file holds, without the line's end."""
    with _usable(setting, path):
        secret = path.read_bytes().rstrip(b"\r\n") if path is not None else b""
        if not secret:
            raise ValueError("it is empty")
        try:
            return secret.decode()
        except UnicodeDecodeError:  # its own text shows a part of the secret
            raise ValueError("it is not UTF-8") from None


@contextmanager
def _usable(setting: str, path: Path | None) -> Iterator[None]:
    """What is wrong with a file, as a `UserError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason: object = error
        if isinstance(error, ssl.SSLError):
            reason = "it is no PEM file of what it should hold, or its password is another"
        elif isinstance(error, OSError):
            reason = error.strerror
        raise UserError(f"cannot use {path}: {reason}; see {environment_name(setting)}") from None


@asynccontextmanager
async def connect(access: Access, timeout_s: float = 5) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for administration, once the broker has answered; `timeout_s` seconds bound that and each request.

    Raises `UserError` when no broker answers, or one does not let us in.
    """
    access = {**access, "request_timeout_ms": int(1_000 * timeout_s)}
    try:
        check_servers(access["bootstrap_servers"])
        admin = AIOKafkaAdminClient(**access)
    except ValueError:
        raise _no_list(access) from None
    correct(admin._client)
    try:
        with _silent():
            await _greet(admin, access, timeout_s)
        yield admin
    finally:
        await admin.close()


async def _greet(admin: AIOKafkaAdminClient, access: Access, timeout_s: float) -> None:
    servers = access["bootstrap_servers"]
    try:
        async with asyncio.timeout(timeout_s):
            await admin.start()
    except (KafkaError, OSError, TimeoutError):
        named = [(host, port) for host, port, _ in collect_hosts(servers, randomize=False)]
        raise await _diagnosis(named, access, timeout_s) or NoBrokerError(
            f"no Kafka broker answers at {servers}: "
            f"start one with 'stream-rec broker' or set {environment_name('bootstrap_servers')}"
        ) from None
    except ValueError:
        raise _no_list(access) from None
    try:
        async with asyncio.timeout(timeout_s):
            await admin.list_topics()
    except (KafkaError, OSError, TimeoutError, ValueError):
        told = [(broker.host, broker.port) for broker in admin._client.cluster.brokers()]
        raise await _diagnosis(told, access, timeout_s) or UserError(
            f"the Kafka broker at {servers} names an address that can't be reached from here: "
            "set its advertised.listeners"
        ) from None


async def _diagnosis(hosts: Iterable[tuple[str, int]], access: Access, timeout_s: float) -> UserError | None:
    """Knocks at each broker once more, because aiokafka does not say why none let us in; None: none answers."""
    arguments = {name: value for name, value in access.items() if name != "bootstrap_servers"}
    protocol, mechanism = environment_name("kafka_security_protocol"), environment_name("kafka_sasl_mechanism")
    for host, port in hosts:
        at = f"the Kafka broker at {host}:{port}"
        try:
            async with asyncio.timeout(timeout_s):
                (await create_conn(host, port, **arguments)).close()
        except SaslAuthenticationFailed:
            who = access["sasl_plain_username"]
            return UserError(f"{at} refuses user {who!r}: check the user, the password and {mechanism}")
        except (UnsupportedSaslMechanismError, IllegalSaslStateError):
            return UserError(f"{at} does not take {access['sasl_mechanism']}: set {mechanism}")
        except ssl.SSLCertVerificationError as error:
            trusted = f"check {environment_name('kafka_ca_file')} and the host's name"
            return UserError(f"{at} has a certificate that is not trusted ({error.verify_message}): {trusted}")
        except ssl.SSLError:
            return UserError(f"{at} does not speak TLS as we do: set {protocol}")
        except (KafkaConnectionError, ConnectionResetError) as error:
            if isinstance(error.__cause__, ssl.SSLError):
                own = environment_name("kafka_cert_file")
                return UserError(f"{at} wants a certificate that it trusts from us: set {own}")
        except (KafkaError, OSError, TimeoutError):
            continue
        return UserError(f"{at} hangs up: does {protocol}={access.get('security_protocol', 'PLAINTEXT')} suit it?")
    return None


def _no_list(access: Access) -> UserError:
    servers = access["bootstrap_servers"]
    return UserError(f"{servers!r} is no list of host:port: set {environment_name('bootstrap_servers')}")


@contextmanager
def _silent() -> Iterator[None]:
    """aiokafka logs each failed attempt; the person gets one line, the `UserError`."""
    logger = logging.getLogger("aiokafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tells_no_password(record: logging.LogRecord) -> bool:
    """At the level debug aiokafka logs each request as it is sent: the password of PLAIN is in one of them."""
    said = record.args if isinstance(record.args, tuple) else ()
    return not any(getattr(one, "API_KEY", None) == SaslAuthenticateRequest.API_KEY for one in said)
