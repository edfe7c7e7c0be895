"""A Kafka with TLS, logins and its own authorizer, and rights given and taken on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from cryptography.hazmat.primitives import serialization

from stream_rec import config
from stream_rec.config import Settings
from stream_rec.kafka.access_control import OPERATIONS, PARTS, AclBinding
from stream_rec.local.broker import HOST, Broker

KEY_PASSWORD = "of the key"
KINDS = {"topic": 2, "group": 3, "transactional-id": 5}
LITERAL, PREFIXED, ALLOW = 3, 4, 3
Acl = tuple[int, str, int, str, str, int, int]
LOGIN = "org.apache.kafka.common.security"


def password_of(user: str) -> str:
    return f"secret-of-{user}"


class Secured(NamedTuple):
    """Where the broker is. The plain listener is the administrator's, and asks nothing."""

    folder: Path
    plain: str
    """host:port"""
    sasl: str
    """host:port of SASL_SSL."""
    mutual: str
    """host:port of SSL that asks for a certificate."""

    def as_user(self, settings: Settings, user: str, **changes: Any) -> Settings:
        """The settings with this user's login, by SCRAM-SHA-512 unless `changes` say otherwise."""
        given = {
            "bootstrap_servers": self.sasl,
            "kafka_security_protocol": "SASL_SSL",
            "kafka_username": user,
            "kafka_password": password_of(user),
            "kafka_ca_file": self.folder / "ca.pem",
        }
        return config.load_settings(**{**settings.model_dump(exclude_unset=True), **given, **changes})


@contextmanager
def secured(folder: Path) -> Iterator[Secured]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "another-ca.pem")
    _store(authority.issue_cert(HOST), folder / "broker.pem", serialization.NoEncryption())
    own = serialization.BestAvailableEncryption(KEY_PASSWORD.encode())
    _store(authority.issue_cert("client.example", common_name="client"), folder / "client.pem", own)
    (folder / "key-password").write_text(KEY_PASSWORD + "\n")
    users = " ".join(f'user_{user}="{password_of(user)}"' for user in PARTS)
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:client",
        "ssl.principal.mapping.rules": "RULE:^CN=(.*?),.*$/$1/",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required {users};",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
    }
    scram = [f"--add-scram=SCRAM-SHA-512=[name={user},password={password_of(user)}]" for user in PARTS]
    with Broker(listeners=("SASL_SSL", "SSL"), properties=properties, formatting=scram) as broker:
        sasl, mutual = (f"{HOST}:{port}" for port in broker.ports.values())
        yield Secured(folder, broker.bootstrap, sasl, mutual)


def _store(certificate: trustme.LeafCert, path: Path, encryption: serialization.KeySerializationEncryption) -> None:
    """Key and chain in one file; Kafka reads keys as PKCS #8 alone."""
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    path.write_bytes(pem + b"".join(one.bytes() for one in certificate.cert_chain_pems))


class _CreateAcls(CreateAclsRequest):
    """Many at once."""

    def __init__(self, acls: list[Acl]) -> None:
        self._acls = acls

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._acls)


async def give(admin: AIOKafkaAdminClient, user: str, *rights: AclBinding) -> None:
    answer = await admin._send_request(_CreateAcls([_acl(user, right) for right in rights]))
    assert {code for code, _ in answer.creation_responses} == {0}


async def take(admin: AIOKafkaAdminClient, user: str, right: AclBinding) -> None:
    answer = await admin._send_request(DeleteAclsRequest(*_acl(user, right)))
    ((code, _, taken),) = answer.filter_responses
    assert (code, len(taken)) == (0, 1)


def _acl(user: str, right: AclBinding) -> Acl:
    pattern = PREFIXED if right.prefixed else LITERAL
    return KINDS[right.kind], right.name, pattern, f"User:{user}", "*", OPERATIONS[right.operation], ALLOW
