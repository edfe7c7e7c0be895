from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stream_rec.cli.main import cli
from stream_rec.config import PREFIX, Settings, environment, environment_name, load_settings
from stream_rec.errors import UserError


@pytest.fixture(autouse=True)
def bare_place(monkeypatch, tmp_path):
    for name in [environment_name(setting) for setting in (*Settings.model_fields, "config", "data")]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "stream-rec.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path.absolute()


def error_of(config: Path | None = None, **given: object) -> str:
    with pytest.raises(UserError) as raised:
        load_settings(config, **given)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_defaults_are_valid_and_described():
    assert load_settings().partitions == 4
    assert all(field.description for field in Settings.model_fields.values())


def test_command_line_wins_over_environment_over_file_over_default(monkeypatch):
    write("top_k = 11\ncapacity = 32\npartitions = 3\n")
    monkeypatch.setenv("STREAM_REC_TOP_K", "12")
    monkeypatch.setenv("STREAM_REC_CAPACITY", "48")
    settings = load_settings(top_k=13)
    assert (settings.top_k, settings.capacity, settings.partitions, settings.interests_k) == (13, 48, 3, 5)


def test_an_option_that_was_not_given_leaves_the_environment_in_force(monkeypatch):
    monkeypatch.setenv("STREAM_REC_TOP_K", "12")
    assert load_settings(top_k=None).top_k == 12


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("STREAM_REC_TOP_K", "")
    assert load_settings().top_k == 20


def test_the_named_file_is_read_in_place_of_the_one_in_the_folder(monkeypatch):
    write("top_k = 11")
    other = write("top_k = 12", "other.toml")
    third = write("top_k = 13", "third.toml")
    assert load_settings().top_k == 11
    monkeypatch.setenv(PREFIX + "CONFIG", str(other))
    assert load_settings().top_k == 12
    assert load_settings(third).top_k == 13


@pytest.mark.parametrize("listed", ["click, view ,share,", ("click", "view", "share")])
def test_event_types_are_a_list_or_words_between_commas(listed):
    assert load_settings(event_types=listed).event_types == ("click", "view", "share")


def test_event_types_from_a_file_and_from_the_environment(monkeypatch):
    write('event_types = ["play", "skip"]')
    assert load_settings().event_types == ("play", "skip")
    monkeypatch.setenv("STREAM_REC_EVENT_TYPES", "play,skip,like")
    assert load_settings().event_types == ("play", "skip", "like")


@pytest.mark.parametrize(("capacity", "stride", "move"), [(64, None, 32), (3, None, 1), (64, 1, 1), (64, 64, 64)])
def test_a_window_moves_by_half_of_its_capacity_unless_told(capacity, stride, move):
    assert load_settings(capacity=capacity, stride=stride).effective_stride == move


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("top_k", "many"),
        ("partitions", "0"),
        ("device", "tpu"),
        ("store", "disk"),
        ("events_topic", "events of ours"),
        ("event_types", ","),
        ("kv_cache_gb", "nan"),
        ("retention_hours", "inf"),
        ("linger_ms", "-1"),
        ("worker_metrics_port", "65536"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting_and_its_variable(monkeypatch, setting, value):
    monkeypatch.setenv(environment_name(setting), value)
    assert f"setting {setting} ({environment_name(setting)})" in error_of()


def test_all_wrong_values_are_named_at_once(monkeypatch):
    write("partitions = 0")
    monkeypatch.setenv("STREAM_REC_TOP_K", "many")
    text = error_of(device="tpu")
    assert all(setting in text for setting in ("partitions", "top_k", "device"))


def test_settings_that_contradict_each_other():
    assert "stride 65 is larger than capacity 64" in error_of(capacity=64, stride=65)
    assert "two topics have the same name" in error_of(items_topic="events")


@pytest.mark.parametrize("name", [".", "..", "__consumer_offsets"])
def test_a_topic_that_kafka_keeps_for_itself_or_does_not_take_is_refused(name):
    assert f"topic {name!r}: Kafka takes no such name" in error_of(events_topic=name)


def test_topics_whose_names_differ_in_dots_and_underscores_are_refused():
    assert "differ in dots and underscores" in error_of(events_topic="shop.events", windows_topic="shop_events")


@pytest.mark.parametrize(
    ("types", "why"),
    [("view,erase", "such an event erases its user"), ("x" * 65, "more than 64 characters"), ("view,view", "twice")],
)
def test_event_types_that_no_event_can_have_are_refused(types, why):
    assert why in error_of(event_types=types)


@pytest.mark.parametrize("text", ["top_k = true", "audit_share = false", "partitions = true", "model = true"])
def test_true_and_false_in_a_file_are_no_numbers(text):
    assert "true and false are no value of it" in error_of(write(text))
    assert load_settings(write("coalesce = false")).coalesce is False


def test_a_retention_that_kafka_cannot_count_is_refused():
    assert "less than or equal to 10000000" in error_of(retention_hours=1e300)


def test_a_name_that_is_no_setting(monkeypatch):
    assert "topk" in error_of(write("topk = 10", "misspelt.toml"))
    monkeypatch.setenv("STREAM_REC_TOPK", "10")
    assert "STREAM_REC_TOPK is no setting" in error_of()


def test_a_settings_file_that_is_not_there():
    assert "missing.toml" in error_of(Path("missing.toml"))


def test_a_settings_file_that_is_not_toml():
    path = write("top_k: 10")
    assert str(path.name) in error_of()


@pytest.mark.parametrize("content", [b"top_k = '\xff'", b"\x00"])
def test_a_settings_file_that_is_not_text(content):
    Path("stream-rec.toml").write_bytes(content)
    assert "stream-rec.toml" in error_of()


SASL = {"kafka_security_protocol": "SASL_SSL", "kafka_username": "u"}


def test_a_password_shows_up_nowhere(monkeypatch):
    monkeypatch.setenv("STREAM_REC_KAFKA_PASSWORD", "pa55word")
    settings = load_settings(**SASL)
    assert settings.kafka_password.get_secret_value() == "pa55word"
    assert "pa55word" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert "pa55word" not in CliRunner().invoke(cli, ["settings"]).output
    write("kafka_password = ['pa55word']")
    monkeypatch.delenv("STREAM_REC_KAFKA_PASSWORD")
    assert "pa55word" not in error_of(**SASL)


def test_another_process_is_given_the_password(monkeypatch):
    for name, value in environment(load_settings(**SASL, kafka_password="pa55word", top_k=7)).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.kafka_password.get_secret_value(), settings.top_k) == ("pa55word", 7)


def test_no_command_takes_a_password_as_an_option():
    for name, command in commands():
        options = {option for parameter in command.get_params(click.Context(command)) for option in parameter.opts}
        if "--bootstrap-servers" in options:
            assert {"--kafka-username", "--kafka-password-file", "--kafka-ca-file"} <= options, name
        assert "--kafka-password" not in options, name


def commands(group: click.Group = cli) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield from commands(command) if isinstance(command, click.Group) else ((name, command),)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kafka_security_protocol": "SASL_SSL"}, "SASL_SSL needs kafka_username"),
        (SASL, "needs one of kafka_password_file and kafka_password"),
        (SASL | {"kafka_password": "a", "kafka_password_file": "b"}, "needs one of"),
        ({"kafka_key_file": "key.pem"}, "a key needs kafka_cert_file"),
        ({"kafka_sasl_mechanism": "GSSAPI"}, "setting kafka_sasl_mechanism (STREAM_REC_KAFKA_SASL_MECHANISM)"),
        ({"kafka_security_protocol": "TLS"}, "setting kafka_security_protocol"),
    ],
)
def test_a_login_that_can_be_none_is_refused(given, says):
    assert says in error_of(**given)


def test_pages_listen_on_this_machine_alone():
    assert {load_settings().metrics_host, load_settings().console_host} == {"127.0.0.1"}


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().top_k = 1
