"""Defaults, then YAML, then flags -> the settings of one verb, or one line that says what is wrong with them."""

import difflib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from tyro import _errors as tyro_errors  # the hook is not in tyro's public API; the exact version is pinned
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from skinray.config import VerbSettings
from skinray.errors import ConfigError

AnySettings = TypeVar("AnySettings", bound=VerbSettings)


def resolve(settings_type: type[AnySettings], verb: str, arguments: Sequence[str]) -> AnySettings:
    """The settings of one verb from its defaults, its YAML file and its flags, later ones winning.

    Args:
        settings_type: The verb's settings.
        verb: Its name, for messages.
        arguments: The command line after the verb.

    Returns:
        Complete, valid settings.

    Raises:
        ConfigError: A setting is unknown, missing or out of range.
    """
    path = _config_argument(arguments)
    from_file = _read_yaml(path) if path else {}
    defaults = _partial(settings_type, from_file, path or "")
    registry = ConstructorRegistry()
    registry.primitive_rule(_pairs)
    with tyro_errors.on_parse_error(_raise_one_line):
        resolved: AnySettings = tyro.cli(
            settings_type,
            default=defaults,
            args=list(arguments),
            prog=f"skinray {verb}",
            description=settings_type.__doc__,
            registry=registry,
        )
    return resolved


def _pairs(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """A dictionary is one flag, NAME VALUE NAME VALUE ...; of tuples, each VALUE lists its texts with commas between them.

    tyro itself makes a flag of every key that the default has, which is the file's, and then takes no other key.
    """
    if about.type_origin is not dict:
        return None
    listed = get_args(about.type)[1] is not str

    def read(words: list[str]) -> dict[str, Any]:
        if len(words) % 2:
            raise ValueError(f"takes pairs of NAME and VALUE, {words[-1]!r} has no VALUE")
        return {name: tuple(text.split(",")) if listed else text for name, text in zip(words[::2], words[1::2], strict=True)}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [
            word for name, text in value.items() for word in (name, ",".join(text) if listed else text)
        ],
    )


def _config_argument(arguments: Sequence[str]) -> str | None:
    path = None  # of two the last counts, as for every flag
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            path = argument.removeprefix("--config=")
        elif argument == "--config" and position + 1 < len(arguments):
            path = arguments[position + 1]
    return path


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected 'setting: value' lines, found {type(content).__name__}")
    return content


def _partial(settings_type: type[BaseModel], values: dict[str, Any], path: str, prefix: str = "") -> Any:
    """Settings in which what neither the file nor a default gives stands as tyro's MISSING, to be given as a flag."""
    fields = settings_type.model_fields
    for key in values:
        if key not in fields:
            raise ConfigError(f"--config {path}: unknown setting {prefix}{key}{_did_you_mean(str(key), list(fields))}")
    resolved: dict[str, Any] = {}
    for name, field in fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            inner = {} if values.get(name) is None else values[name]
            if not isinstance(inner, dict):
                raise ConfigError(f"--config {path}: {prefix}{name} is a group of settings, not {inner!r}")
            resolved[name] = _partial(nested, inner, path, f"{prefix}{name}.")
        elif name in values:
            resolved[name] = _checked(settings_type, name, values[name], f"--config {path}: {prefix}{name}")
        else:
            resolved[name] = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
    return settings_type.model_construct(**resolved)


def _checked(settings_type: type[BaseModel], name: str, value: Any, where: str) -> Any:
    field = settings_type.model_fields[name]
    if isinstance(value, bool) and field.annotation is not bool:
        raise ConfigError(f"{where}: true and false are no value for it, found {value}")  # Python takes True for 1
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(
            Annotated[field.annotation, field],  # type: ignore[arg-type]
            config=ConfigDict(allow_inf_nan=False),
        )
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from error


def _raise_one_line(event: tyro_errors.ParseErrorEvent) -> None:
    """Called by tyro for every rejected command line, in place of its many-line box."""
    see = f"see {event.prog} --help"
    if isinstance(event, tyro_errors.UnrecognizedArgs):
        raise ConfigError(f"unknown setting {' '.join(event.tokens)}; {see}")
    if isinstance(event, tyro_errors.MissingArgs):
        if event.unrecognized_tokens:
            raise ConfigError(f"unknown setting {' '.join(event.unrecognized_tokens)}; {see}")
        names = ", ".join(argument.arg.display_name() for argument in event.missing_arguments)
        raise ConfigError(f"missing setting {names}; {see}")
    if isinstance(event, tyro_errors.InvalidChoice):
        name = event.argument.display_name()
        raise ConfigError(f"{name} {event.value!r} is not one of {', '.join(event.choices)}; {see}")
    if isinstance(event, tyro_errors.BadValue):
        raise ConfigError(f"{event.argument.display_name()} needs a value; {see}")
    if isinstance(event, tyro_errors.InstantiationFailure):
        cause = sys.exc_info()[1]
        while cause is not None and not isinstance(cause, ValidationError):
            cause = cause.__cause__ or cause.__context__
        message = _one_line(cause) if cause is not None else " ".join(event.message.split())
        name = f"{event.argument.display_name()}: " if event.argument is not None else ""
        raise ConfigError(f"{name}{message}; {see}")


def _one_line(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = "" if isinstance(problem["input"], (dict, BaseModel)) else f", not {problem['input']!r}"
        parts.append(f"{where}: {message}{given}" if where else f"{message}{given}")
    return "; ".join(parts)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
