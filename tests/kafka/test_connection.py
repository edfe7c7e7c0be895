import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiokafka.protocol.admin import ApiVersionRequest, SaslAuthenticateRequest
from cryptography.hazmat.primitives import serialization

from stream_rec import config
from stream_rec.errors import UserError
from stream_rec.kafka.connection import access

SASL = {"kafka_security_protocol": "SASL_SSL", "kafka_username": "u", "kafka_ca_file": "ca.pem"}


@pytest.fixture(autouse=True)
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority, a certificate with its key in two files, and the key once more, encrypted."""
    monkeypatch.chdir(tmp_path)
    authority = trustme.CA()
    own = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    key = serialization.load_pem_private_key(own.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"of the key")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    (tmp_path / "encrypted.pem").write_bytes(key.private_bytes(*form))
    (tmp_path / "password").write_bytes(b"of the key\r\n")
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "noise").write_bytes(b"pa55word\xff")


def made(**given: Any) -> dict[str, Any]:
    return access(config.load_settings(**given))


def test_without_security_nothing_but_the_address_is_said() -> None:
    assert made(bootstrap_servers="a:1") == {"bootstrap_servers": "a:1", "security_protocol": "PLAINTEXT"}


def test_a_password_is_what_its_file_holds_without_the_end_of_the_line() -> None:
    assert made(**SASL, kafka_password_file="password")["sasl_plain_password"] == "of the key"


def test_the_broker_s_certificate_and_name_are_always_checked() -> None:
    for given in ({"kafka_security_protocol": "SSL"}, SASL | {"kafka_password": "p"}):
        context = made(**given)["ssl_context"]
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    "own", [{"kafka_key_file": "key.pem"}, {"kafka_key_file": "encrypted.pem", "kafka_key_password_file": "password"}]
)
def test_a_certificate_of_our_own_is_shown(own: dict[str, str]) -> None:
    assert made(kafka_security_protocol="SSL", kafka_cert_file="cert.pem", **own)


CERT = {"kafka_security_protocol": "SSL", "kafka_cert_file": "cert.pem"}
MISTAKES = [
    (SASL | {"kafka_password_file": "nowhere"}, "cannot use nowhere: No such file or directory", "PASSWORD_FILE"),
    (SASL | {"kafka_password_file": "empty"}, "cannot use empty: it is empty", "PASSWORD_FILE"),
    (SASL | {"kafka_password_file": "noise"}, "cannot use noise: it is not UTF-8", "PASSWORD_FILE"),
    (SASL | {"kafka_password": "p", "kafka_ca_file": "key.pem"}, "cannot use key.pem: it is no PEM", "CA_FILE"),
    (CERT, "cannot use cert.pem: it is no PEM", "CERT_FILE"),
    (CERT | {"kafka_key_file": "nowhere"}, "cannot use nowhere: No such file or directory", "KEY_FILE"),
    (CERT | {"kafka_key_file": "encrypted.pem"}, "the key is encrypted, give ", "KEY_PASSWORD_FILE"),
    (
        CERT | {"kafka_key_file": "encrypted.pem", "kafka_key_password_file": "ca.pem"},
        "cannot use encrypted.pem",
        "KEY",
    ),
    (CERT | {"kafka_key_file": "key.pem", "kafka_cert_file": "nowhere"}, "cannot use nowhere", "CERT_FILE"),
]


@pytest.mark.parametrize(("given", "says", "setting"), MISTAKES)
def test_a_file_that_cannot_be_used_is_one_line(given: dict[str, str], says: str, setting: str) -> None:
    with pytest.raises(UserError) as raised:
        made(**given)
    text = str(raised.value)
    assert says in text
    assert f"STREAM_REC_KAFKA_{setting}" in text
    assert "\n" not in text
    assert "pa55word" not in text


def test_what_aiokafka_tells_at_the_level_debug_holds_no_password(caplog: pytest.LogCaptureFixture) -> None:
    made(**SASL, kafka_password="pa55word", kafka_sasl_mechanism="PLAIN")
    log = logging.getLogger("aiokafka.conn")
    with caplog.at_level(logging.DEBUG, log.name):
        for request in (SaslAuthenticateRequest(b"\0u\0pa55word"), ApiVersionRequest()):
            log.debug("Request to %s:%d %d: %s", "host", 1, 2, request.build(request._CLASSES[0]))
    assert len(caplog.records) == 1
    assert "pa55word" not in caplog.text
