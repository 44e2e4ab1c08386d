"""The child process of the embedded engine: llama-server's command line over the wheel's server.

It imports nothing of the product, so that it starts as quickly as the wheel allows.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from supervisor.engine.kinds.arguments import read_arguments
from supervisor.engine.kinds.flag_table import FLAGS, WHEEL_EXTRAS, Flag, WheelParameter

TAKEN = {
    flag.name: (flag, flag.wheel) for flag in (*FLAGS, *WHEEL_EXTRAS) if flag.wheel is not None
}
"""The flags that this server can honour, by name, with how the wheel takes them."""


def value_count(flag: str) -> int | None:
    """Return how many values follow a flag; None: this server does not know it."""
    return _VALUE_COUNTS.get(flag)


_VALUE_COUNTS = {
    spelling: 0 if parameter.is_switch else 1
    for flag, parameter in TAKEN.values()
    for spelling in flag.spellings
}


def flag_parser() -> argparse.ArgumentParser:
    """Parser for the llama-server flags that this server can honour."""
    parser = argparse.ArgumentParser(prog="embedded-server", add_help=False, allow_abbrev=False)
    for flag, parameter in TAKEN.values():
        names = [name for name in flag.spellings if name != flag.negation]
        is_required = flag.name in {"--model", "--host"}
        if not parameter.is_switch:
            parser.add_argument(
                *names, type=parameter.read, choices=parameter.words, required=is_required
            )
        elif flag.negation:
            parser.add_argument(*names, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(*names, action="store_const", const=True)
    return parser


def joined(words: Sequence[str]) -> list[str]:
    """Write a command line so that argparse reads it as llama-server does.

    A value stands behind its flag's `=`, so that it may begin with a dash.
    """
    said: list[str] = []
    for each in read_arguments(words, value_count):
        if each.values and each.value_count:
            said.append(f"{each.flag}={each.values[0]}")
        else:
            said += (each.flag, *each.values)
    return said


def build_params(flags: argparse.Namespace, api_key: str | None) -> Any:
    """Translate parsed flags into the wheel's `CommonParams`; None leaves its default."""
    import xllamacpp  # noqa: PLC0415 - only the child process loads the wheel

    params = xllamacpp.CommonParams()
    params.api_keys = [api_key] if api_key else []
    params.ui = False
    for flag, parameter in TAKEN.values():
        value = getattr(flags, _attribute(flag))
        if value is not None:
            _set(params, parameter, _translated(value, parameter, xllamacpp))
    return params


def _attribute(flag: Flag) -> str:
    """Return the name under which argparse keeps a flag's value."""
    return flag.name.removeprefix("--").replace("-", "_")


def _translated(value: Any, parameter: WheelParameter, wheel: Any) -> Any:
    if parameter.words is None:
        return value
    meant = parameter.words[value]
    return getattr(getattr(wheel, parameter.enum), meant) if parameter.enum else meant


def _set(params: Any, parameter: WheelParameter, value: Any) -> None:
    for attribute in parameter.attributes:
        *parts, last = attribute.split(".")
        owner = params
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, last, value)


def main() -> None:
    """Serve until a signal ends the process."""
    flags = flag_parser().parse_args(joined(sys.argv[1:]))
    # Nothing needs saving on the way out, and the wheel's teardown may wait for clients: SIGTERM
    # keeps its default action, which returns the memory at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    params = build_params(flags, os.environ.get("LLAMA_API_KEY"))
    import xllamacpp  # noqa: PLC0415 - only the child process loads the wheel

    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # noqa: BLE001 - the wheel raises bare C++ exceptions
        sys.exit(f"the embedded server cannot load {flags.model}: {error}")
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)  # noqa: T201
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
