"""Commands that take settings, the options that stand in `config.py`, and options that go with others or do not."""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from stream_rec.errors import UserError
from stream_rec.messages import LONGEST_ID

T = TypeVar("T")

EVERYWHERE = ("log_level",)
KAFKA = (
    *("bootstrap_servers", "kafka_security_protocol", "kafka_sasl_mechanism", "kafka_username", "kafka_password_file"),
    *("kafka_ca_file", "kafka_cert_file", "kafka_key_file", "kafka_key_password_file", *EVERYWHERE),
)
"""Of whoever talks to Kafka. Not the password itself: a command line is seen by every user of the machine."""
OF_KAFKA = {*KAFKA, "events_topic", "items_topic", "recommendations_topic", "dead_letter_topic"} - {*EVERYWHERE}
"""Settings that a command has no use for where it reads a file and sends nothing."""


class Finite(click.FloatRange):
    """A number that is neither infinite nor NaN, which is in any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class Positive(click.IntRange):
    """A whole number of things, of which there are never 10^15: what is computed from it is a number too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number > MOST:
            self.fail(f"{number} is more than {MOST:,}.", param, ctx)
        return number


class UserId(click.ParamType):
    """What an event may have as its `user_id`."""

    name = "user"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("it is not in UTF-8, as each user's id is.", param, ctx)
        if not 1 <= len(value) <= LONGEST_ID:
            self.fail(f"it has {len(value)} characters; a user's id has 1 to {LONGEST_ID}.", param, ctx)
        return value


MOST = 10**15
POSITIVE = Positive(1)
CORES = click.IntRange(1, 1_024)
SEED = click.IntRange(0, (1 << 32) - 1)
PORT = click.IntRange(0, 65_535)


class Option(click.Option):
    """An option of a `Command` that has no effect without, or together with, certain others: it is refused then.

    `needs` names the options of which one must be given too, `excludes` those of which none may be.
    """

    def __init__(self, *args: Any, needs: Sequence[str] = (), excludes: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = tuple(needs)
        self.excludes = tuple(excludes)

    def check(self, given: Container[str]) -> None:
        """Raises `UserError` where the option doesn't go with the others that are `given`."""
        flag = self.opts[0]
        for other in self.excludes:
            if other in given:
                raise UserError(f"{flag} does not go with {other}: leave one of the two out")
        if self.needs and not any(other in given for other in self.needs):
            raise UserError(f"{flag} is for {' or '.join(self.needs)}: give that too, or leave it out")


class Command(click.Command):
    """A command that also takes settings as options, and hands all settings to its function as `settings`.

    Each `Option` is checked against the others before anything else. `offline` is given the options on the command
    line and returns whether the command, with these, does without Kafka: settings of Kafka are refused then.
    """

    def __init__(
        self,
        *args: Any,
        settings: Sequence[str] = (),
        offline: Callable[[Container[str]], bool] = lambda _: False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.settings = tuple(settings)
        self.offline = offline
        self._options: list[click.Parameter] | None = None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters, then its settings; those are looked up when somebody asks."""
        if self._options is None:
            self._options = [_option(name, (self.name or "").split("-")[0]) for name in self.settings]
        return [*super().get_params(ctx), *self._options]

    def invoke(self, ctx: click.Context) -> Any:
        from stream_rec import config

        given = {flag: option for option in self.get_params(ctx) if _given(option, ctx) for flag in option.opts}
        for option in given.values():
            if isinstance(option, Option):
                option.check(given)
        if self.offline(given):
            for flag, option in given.items():
                if option.name in OF_KAFKA:
                    raise UserError(f"{flag} has no effect: without --from-topic nothing is read from Kafka")
        if self.settings:
            chosen = {name: ctx.params.pop(name) for name in self.settings}
            ctx.params["settings"] = config.load_settings(ctx.find_root().params["config"], **chosen)
        return super().invoke(ctx)


def _given(option: click.Parameter, ctx: click.Context) -> bool:
    """Whether a person said it; an empty text says nothing."""
    on_command_line = ctx.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    return on_command_line and ctx.params.get(option.name or "") != ""


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

    from stream_rec.runtime.terminal import Terminal

    return track(items, what, total, console=Terminal(stderr=True), transient=True)
