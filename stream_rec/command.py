"""Commands that take settings: the options of a command that stand in `config.py`."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import click

T = TypeVar("T")

EVERYWHERE = ("log_level",)
KAFKA = (
    *("bootstrap_servers", "kafka_security_protocol", "kafka_sasl_mechanism", "kafka_username", "kafka_password_file"),
    *("kafka_ca_file", "kafka_cert_file", "kafka_key_file", "kafka_key_password_file", *EVERYWHERE),
)
"""Of whoever talks to Kafka. Not the password itself: a command line is seen by every user of the machine."""


class Finite(click.FloatRange):
    """A number that is neither infinite nor NaN, which is in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


POSITIVE = click.IntRange(1)
SEED = click.IntRange(0, (1 << 32) - 1)
PORT = click.IntRange(0, 65_535)


class Command(click.Command):
    """A command that also takes settings as options, and hands all settings to its function as `settings`."""

    def __init__(self, *args: Any, settings: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = tuple(settings)
        self._options: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then its settings; those are looked up when somebody asks."""
        if self._options is None:
            self._options = [_option(name, (self.name or "").split("-")[0]) for name in self.settings]
        return [*super().get_params(ctx), *self._options]

    def invoke(self, ctx: click.Context) -> Any:
        from stream_rec import config

        if self.settings:
            given = {name: ctx.params.pop(name) for name in self.settings}
            ctx.params["settings"] = config.load(ctx.find_root().params["config"], **given)
        return super().invoke(ctx)


def _option(name: str, command: str) -> click.Option:
    """A setting as an option; `agents_group` is --group where the command is `agents`."""
    from stream_rec.config import Settings, environment_name

    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = ",".join(default) if isinstance(default, tuple) else default
    about = field.description or ""
    if default is not None:
        about += f" [default: {shown}]"
    flag = "--" + name.removeprefix(f"{command}_").removeprefix(f"{command.rstrip('s')}_").replace("_", "-")
    return click.Option([flag, name], help=f"{about} [{environment_name(name)}]", metavar="VALUE")


def shown(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """`items`, with a progress bar on stderr."""
    from rich.progress import track

    from stream_rec.terminal import Terminal

    return track(items, what, total, console=Terminal(stderr=True), transient=True)
