"""`python -m kveik.server --model FOLDER --dtype auto --api-key KEY --port 8000`"""

from __future__ import annotations

import argparse
import os
import sys

from kveik.config import API_KEY_FILE, ENGINE_OPTIONS, SERVER_OPTIONS, Option, read_settings
from kveik.errors import KveikError
from kveik.server import serve


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 after a drained stop, 1 where nothing could be served."""
    given = vars(_parser().parse_args(arguments))
    try:
        file = given.pop("config")
        settings = read_settings(given, os.environ, file)
        serve(settings.engine, settings.server)
    except KveikError as error:
        print(f"kveik: {error.message}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kveik.server", description="Serve a model.")
    parser.add_argument("--config", help="TOML or JSON file with options")
    for option in (*ENGINE_OPTIONS, *SERVER_OPTIONS, API_KEY_FILE):
        _add(parser, option)
    return parser


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    name = "--" + option.name.replace("_", "-")
    text = option.help.replace("%", "%%")
    if option.kind == "switch":
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif option.kind == "list":
        parser.add_argument(name, action="append", metavar="VALUE", help=text)
    else:
        parser.add_argument(name, choices=option.choices or None, help=text)


if __name__ == "__main__":
    sys.exit(main())
