"""Where a configuration comes from: flags over environment over file over defaults; and how it is documented.

Everything here is derived from the fields of :class:`kvorum.config.Config`, so a new option needs one new field only.
"""

from __future__ import annotations

import argparse
import difflib
import os
import socket
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from kvorum.config import Config, PeerAddress, parse_peers, resolve
from kvorum.errors import ConfigError

ENV_PREFIX = "KVORUM_"
CONFIG_FILE_ENV = "KVORUM_CONFIG"

_OTHER_ENV = (
    *("KVORUM_ENDPOINTS", "KVORUM_CLIENT_PORT", "KVORUM_BUILD_REVISION"),
    *("KVORUM_LOCK_NAME", "KVORUM_LOCK_TOKEN", "KVORUM_ELECTION_NAME", "KVORUM_ELECTION_TOKEN"),
)
"""Read by the client, and by the metrics of an image that was built with it; set by `kv lock` and `kv elect`."""

_LIKENESS = 0.85
"""Of two names, from 0 to 1: the prefix alone makes any two somewhat alike."""

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class Option(msgspec.Struct, frozen=True):
    """One option as the flags, the environment and the documentation see it."""

    name: str
    type: Any
    """With its limits: what ``msgspec.convert`` takes."""
    default: Any
    help: str
    unit: str
    limits: str
    alias: str | None
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The command line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def is_bool(self) -> bool:
        """Whether it is a switch."""
        return isinstance(self.default, bool)

    def show(self, value: Any) -> str:
        """Return the value as a user would write it."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple):
            return ",".join(f"{peer.name}={peer.address}" for peer in value)
        if isinstance(value, float):
            return f"{value:g}"
        return str(value)


def options() -> tuple[Option, ...]:
    """Return every option, in the order of the struct."""
    hints = get_type_hints(Config, include_extras=True)
    return tuple(_option(field.name, hints[field.name], field.default) for field in msgspec.structs.fields(Config))


def _option(name: str, hint: Any, default: Any) -> Option:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"Config.{name} has no description")
    inner, meta = get_args(hint)
    extra = meta.extra or {}
    choices = tuple(str(choice) for choice in get_args(inner)) if isinstance(default, str) else ()
    bounds = (("", meta.ge), (" to ", meta.le))
    limits = "".join(f"{word}{bound:,}" for word, bound in bounds if bound is not None)
    if choices:
        limits = ", ".join(choices)
    elif meta.max_length is not None:
        limits = f"at most {meta.max_length} characters"
    return Option(name, hint, default, meta.description, extra.get("unit", ""), limits, extra.get("alias"), choices)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and one flag per option to the parser; a flag that is not given is absent from the namespace."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"TOML file of NAME = VALUE lines; the names are those below with '_' for '-' (or {CONFIG_FILE_ENV}).",
    )
    for option in options():
        names = [option.flag] + ([option.alias] if option.alias else [])
        if option.is_bool:
            parser.add_argument(
                *names, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_help(option)
            )
        else:
            parser.add_argument(
                *names, dest=option.name, metavar=_metavar(option), default=argparse.SUPPRESS, help=_help(option)
            )


def _metavar(option: Option) -> str:
    if option.choices:
        return "{" + ",".join(option.choices) + "}"
    return option.unit.upper() or ("N" if isinstance(option.default, int) else "VALUE")


def _help(option: Option) -> str:
    facts = [option.limits] if option.limits and not option.choices else []
    if option.show(option.default):
        facts.append(f"default {option.show(option.default)}")
    facts.append(option.env)
    return (option.help + f" [{'; '.join(facts)}]").replace("%", "%%")


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, host_name: str | None = None
) -> tuple[Config, dict[str, str]]:
    """Return the resolved configuration, and where each option that was given came from.

    Args:
        flags: what the parser found (see :func:`add_arguments`); other names are ignored.
        environ: the environment; None: the process's.
        host_name: the default of ``name``; None: the machine's, up to its first dot.

    Raises:
        ConfigError: one line, naming the source of what is wrong.
    """
    environ = os.environ if environ is None else environ
    raw: dict[str, tuple[Any, str]] = {}
    path = flags.get("config") or environ.get(CONFIG_FILE_ENV)
    if path:
        raw.update(_from_file(path))
    for option in options():
        # An empty variable is an unset one: templates often leave them so.
        if environ.get(option.env):
            raw[option.name] = (environ[option.env], option.env)
        if option.name in flags:
            raw[option.name] = (flags[option.name], option.flag)
    values = {option.name: _convert(option, *raw[option.name]) for option in options() if option.name in raw}
    host_name = host_name if host_name is not None else socket.gethostname().split(".")[0]
    config = resolve(Config(**values), host_name=host_name)
    return config, {name: source for name, (_, source) in raw.items()}


def _from_file(path: str) -> dict[str, tuple[Any, str]]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not TOML: {error}") from None
    known = {option.name for option in options()}
    for name in document:
        if name not in known:
            hint = " (write '_' for '-')" if name.replace("-", "_") in known else ""
            raise ConfigError(f"configuration file {path}: there is no option {name!r}{hint}")
    return {name: (value, f"{name} in {path}") for name, value in document.items()}


def _convert(option: Option, value: Any, source: str) -> Any:
    try:
        if option.name == "peers":
            return _convert_peers(value)
        if option.is_bool and isinstance(value, str):
            return _convert_bool(value)
        if isinstance(value, bool) and not option.is_bool:
            raise ConfigError("a switch value for an option that is not a switch")
        return msgspec.convert(value, type=option.type, strict=False)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except msgspec.ValidationError:
        raise ConfigError(f"{source}: must be {_kind(option)}, not {value!r}") from None


def _kind(option: Option) -> str:
    """Return what the option takes, with its limits and unit."""
    if option.choices:
        return f"one of {option.limits}"
    kind = {int: "a whole number", float: "a number", bool: "a switch"}.get(type(option.default))
    if kind is None:
        return f"a string of {option.limits}" if option.limits else "a string"
    limits = f" from {option.limits}" if option.limits else ""
    return f"{kind}{limits}{' ' + option.unit if option.unit else ''}"


def _convert_bool(value: str) -> bool:
    word = value.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ConfigError(f"{value!r} is not true or false")
    return word in _TRUE


def _convert_peers(value: Any) -> tuple[PeerAddress, ...]:
    """Take the flag's string, or in a file a table: ``[peers]`` with ``n1 = "127.0.0.1:9001"``."""
    if isinstance(value, str):
        return parse_peers(value)
    if isinstance(value, dict) and all(isinstance(address, str) for address in value.values()):
        return parse_peers(",".join(f"{name}={address}" for name, address in value.items()))
    raise ConfigError("peers is neither NAME=HOST:PORT,... nor a table of them")


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the ``KVORUM_`` variables that no option reads: most likely misspelt."""
    known = _known_variables()
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def unknown_variables_warning(environ: Mapping[str, str]) -> str:
    """Return one line that names these variables, and what was perhaps meant; empty: there are none."""
    unknown = unknown_variables(environ)
    if not unknown:
        return ""
    known = sorted(_known_variables())
    likely = [match for name in unknown for match in difflib.get_close_matches(name, known, 1, _LIKENESS)]
    hint = f". Did you mean {', '.join(dict.fromkeys(likely))}?" if likely else ""
    return f"Ignoring unknown environment variables: {', '.join(unknown)}{hint}"


def _known_variables() -> set[str]:
    return {option.env for option in options()} | {CONFIG_FILE_ENV, *_OTHER_ENV}


def markdown() -> str:
    """Return docs/config.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- Generated by `kvorum config --markdown`; a test compares. -->",
        "",
        "Every option of a node. A flag takes precedence over its environment variable, the variable over the file of",
        f"`--config` or `{CONFIG_FILE_ENV}` (TOML, one `name = value` a line, names as in the first column), and the",
        "file over the default.",
        "An invalid configuration is rejected with one line and exit status 2.",
        "`kvorum config [FLAGS]` prints the values that a node with these flags would use, and where each comes from.",
        "",
        "| name | flag | variable | default | unit | limits | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for option in options():
        flag = f"`{option.flag}`" + (f" (`{option.alias}`)" if option.alias else "")
        default = f"`{shown}`" if (shown := option.show(option.default)) else ""
        lines.append(
            f"| `{option.name}` | {flag} | `{option.env}` | {default} | {option.unit} | {option.limits} "
            f"| {option.help} |"
        )
    return "\n".join(lines) + "\n"


def describe(config: Config, sources: Mapping[str, str]) -> str:
    """Return the configuration as text: every option, its value, its unit and where it comes from."""
    lines = []
    for option in options():
        value = option.show(getattr(config, option.name))
        if option.name == "bootstrap_token" and value:
            value = "(set)"
        source = sources.get(option.name, "default")
        lines.append(f"{option.name:<24} {value or '-':<32} {option.unit:<6} {source}")
    return "\n".join(lines) + "\n"
