"""The command line: parse, call one function, exit code.

0  done
1  error: what went wrong, in one line
2  bad settings
3  finished, but a stated limit was passed
130  interrupted
"""

import json
import re
import sys
from collections.abc import Sequence

import skinray
from skinray import errors, telemetry
from skinray.errors import ConfigError, SkinrayError
from skinray.flags import resolve
from skinray.telemetry import say
from skinray.verbs import VERBS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What follows the program's name; none: the process's own.

    Returns:
        The exit code.
    """
    telemetry.set_library_defaults()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(skinray.__version__)
        return 0
    try:
        verb = VERBS.get(words[0])
        if verb is None:
            raise ConfigError(f"unknown verb {words[0]!r}; known are {', '.join(VERBS)}")
        settings = resolve(verb.settings, words[0], words[1:])
        say(json.dumps({words[0]: settings.recorded()}))
        if settings.dry_run:
            print("\n".join(verb.dry_run(settings)))
            return 0
        return verb.run(settings)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        say(f"skinray: {known}")
        return known.exit_code
    except KeyboardInterrupt:
        say("skinray: interrupted")
        return 130


def explained(error: BaseException) -> SkinrayError | None:
    """The failure that a user can mend behind an exception; Ray wraps what its workers raise, several times over.

    Returns:
        One line's worth of it, or None for a bug of ours, whose traceback is worth more.
    """
    if isinstance(error, SkinrayError) and type(error).__module__ == SkinrayError.__module__:
        return error  # raised here and not by a worker
    from ray.exceptions import RayError

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, SkinrayError) and not isinstance(link, RayError):
            return link
        link = getattr(link, "cause", None) or link.__cause__ or link.__context__
    # Ray Data hands on the text of what its workers raise and not the exception.
    told = re.findall(r"^skinray\.errors\.(\w+): (.+)$", str(error), re.MULTILINE) if isinstance(error, RayError) else []
    if told:
        name, message = told[-1]
        known: SkinrayError = getattr(errors, name)(message)
        return known
    if isinstance(error, (OSError, ConnectionError)):
        return SkinrayError(f"{type(error).__name__}: {error}")
    return None


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.settings.__doc__}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: skinray VERB [--config FILE] [flags]", "", *lines, "", "skinray VERB --help lists a verb's settings."]
    )
