"""The command line: `kveik serve | chat | follow | generate | cache | plan | info | bench`.

This file only wires Typer to `kveik.commands`; what a command needs is imported when it runs, so
that `kveik --help` is quick. Errors are one line on stderr: exit code 2 for usage, configuration
and models, 1 for everything else.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kveik import __version__
from kveik.commands.cache_app import app as cache_app
from kveik.commands.options import (
    SAMPLING_OPTIONS,
    given_sampling,
    read,
    sampling,
    with_options,
)
from kveik.config import API_KEY_FILE, ENGINE_OPTIONS, SERVER_OPTIONS
from kveik.errors import ConfigError, InvalidRequest, KveikError, ModelLoadError

if TYPE_CHECKING:
    from kveik.commands.chat import Partner
    from kveik.config import Settings

app = typer.Typer(
    name="kveik",
    help="LLM inference and serving whose KV cache is a managed resource.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Every option can also come from KVEIK_* in the environment or from --config FILE.",
)

app.add_typer(cache_app, name="cache")

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model")]
Config = Annotated[str | None, typer.Option("--config", help="TOML or JSON file of options")]
Endless = Annotated[
    bool,
    typer.Option(
        "--endless", help="Never full: keep a window (--stream-window) instead of a history"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]

DEFAULT_ANSWER_TOKENS = 128
ENDLESS_CHAT_TOKENS = 1024


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kveik {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it")
    ] = False,
) -> None:
    pass


@app.command()
@with_options((*ENGINE_OPTIONS, *SERVER_OPTIONS, API_KEY_FILE))
def serve(model_argument: Model = None, config: Config = None, **given: Any) -> None:
    """Serve a model with OpenAI's HTTP interface."""
    from kveik.commands.serve import serve as run

    run(read(given, model=model_argument, file=config))


@app.command()
@with_options((*ENGINE_OPTIONS, *SAMPLING_OPTIONS))
def chat(
    model_argument: Model = None,
    config: Config = None,
    url: Annotated[str | None, typer.Option(help="Talk to this server instead")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for --url")] = None,
    system: Annotated[str | None, typer.Option(help="System message")] = None,
    endless: Endless = False,
    **given: Any,
) -> None:
    """Talk to a model in the terminal."""
    from kveik.commands.chat import chat as run

    settings = read(given, model=model_argument, file=config)
    longest = ENDLESS_CHAT_TOKENS if endless else None
    with _partner(settings, given, url, api_key, endless=endless, longest=longest) as partner:
        run(partner, system=system)


@app.command()
@with_options((*ENGINE_OPTIONS, *SAMPLING_OPTIONS))
def follow(
    file: Annotated[Path, typer.Argument(help="A log that grows")],
    prompt: Annotated[str, typer.Option(help="What is asked behind every group of lines")],
    every: Annotated[int, typer.Option(min=1, help="Lines per group")] = 10,
    once: Annotated[bool, typer.Option("--once", help="Stop at the end of the file")] = False,
    config: Config = None,
    url: Annotated[str | None, typer.Option(help="Ask this server instead")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for --url")] = None,
    system: Annotated[str | None, typer.Option(help="System message")] = None,
    **given: Any,
) -> None:
    """Read a growing log in an endless stream, and answer a prompt every few lines."""
    from kveik.commands.follow import follow as run

    settings = read(given, file=config)
    longest = DEFAULT_ANSWER_TOKENS
    with _partner(settings, given, url, api_key, endless=True, longest=longest) as partner:
        run(partner, file, prompt, every=every, once=once, system=system)


@contextlib.contextmanager
def _partner(
    settings: Settings,
    given: dict[str, Any],
    url: str | None,
    api_key: str | None,
    *,
    endless: bool,
    longest: int | None,
) -> Iterator[Partner]:
    """Who answers: a server, or a model in this process. longest: tokens of an answer for which
    the command line says nothing; a stream would go on until the model ends it."""
    from dataclasses import replace

    from kveik.commands.chat import LocalPartner, RemotePartner

    if url is not None:
        keys = [api_key] if api_key else settings.server.api_keys
        asked = given_sampling(given)
        if longest is not None:
            asked.setdefault("max_tokens", longest)
        window = settings.engine.stream_window
        key = keys[0] if keys else None
        remote = RemotePartner(url, key, asked, endless=endless, stream_window=window)
        try:
            yield remote
        finally:
            remote.reset()
        return
    from kveik.commands.loading import load

    with load(settings.engine) as llm:
        defaults = replace(llm.get_default_sampling_params(), max_tokens=longest)
        yield LocalPartner(llm, sampling(given, defaults), endless=endless)


@app.command()
@with_options((*ENGINE_OPTIONS, *SAMPLING_OPTIONS))
def generate(
    prompt: Annotated[str | None, typer.Argument(help='"-" reads standard input')] = None,
    source: Annotated[Path | None, typer.Option("--input", help="JSONL file of prompts")] = None,
    target: Annotated[Path | None, typer.Option("--output", help="JSONL file of results")] = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="The prompt is a chat message")] = False,
    config: Config = None,
    **given: Any,
) -> None:
    """Complete a prompt, or a JSONL file of prompts (resumable; OpenAI's batch form too)."""
    from dataclasses import replace

    from kveik.commands.generate import generate as run
    from kveik.commands.generate import generate_file, read_prompt
    from kveik.commands.loading import load

    if (source is None) != (target is None) or (source is not None and prompt is not None):
        raise ConfigError("generate: give a prompt, or both --input and --output")
    text = read_prompt(prompt) if source is None else ""
    with load(read(given, file=config).engine) as llm:
        defaults = replace(llm.get_default_sampling_params(), max_tokens=DEFAULT_ANSWER_TOKENS)
        params = sampling(given, defaults)
        if source is not None and target is not None:
            generate_file(llm, source, target, params)
        else:
            run(llm, text, params, as_chat=as_chat)


@app.command()
def plan(
    model: Annotated[
        str | None, typer.Argument(help="Preset, folder in Hugging Face format, or config.json")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Instead of a model")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Default: as many as heads")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Numbers per head")] = None,
    parameters: Annotated[float | None, typer.Option(help="Of the model, such as 70e9")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per user")] = None,
    users: Annotated[int, typer.Option(help="Sequences at once")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the weights")] = "bfloat16",
    kv_dtype: Annotated[str, typer.Option(help="Of keys and values")] = "bfloat16",
    memory: Annotated[str | None, typer.Option(help="Such as 80GB; default: what is free")] = None,
    as_json: AsJson = False,
) -> None:
    """Will it fit? Presets: llama-3-70b, llama-2-70b, gpt-3, gpt-neo-1.3b."""
    from kveik.commands.plan import PlanQuestion
    from kveik.commands.plan import plan as run

    question = PlanQuestion(
        source=model,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        parameters=parameters,
        context=context,
        users=users,
        dtype=dtype,
        kv_dtype=kv_dtype,
        memory=memory,
    )
    run(question, as_json=as_json)


@app.command()
@with_options(ENGINE_OPTIONS)
def info(
    model_argument: Model = None, config: Config = None, as_json: AsJson = False, **given: Any
) -> None:
    """Version, kernel level, model facts, machine."""
    from kveik.commands.info import info as run

    run(read(given, model=model_argument, file=config).engine, as_json=as_json)


@app.command()
@with_options(ENGINE_OPTIONS)
def bench(
    model_argument: Model = None,
    config: Config = None,
    as_json: AsJson = False,
    prompt_tokens: Annotated[int, typer.Option(help="Length of a prompt")] = 256,
    output_tokens: Annotated[int, typer.Option(help="Length of an answer")] = 64,
    batch: Annotated[int, typer.Option(help="Sequences computed together")] = 8,
    repeat: Annotated[int, typer.Option(help="Runs per figure (median)")] = 3,
    **given: Any,
) -> None:
    """Tokens/s, time to first token cold and warm, KV cache on and off."""
    from kveik.commands.bench import BenchSizes
    from kveik.commands.bench import bench as run
    from kveik.commands.loading import load

    sizes = BenchSizes(prompt_tokens, output_tokens, batch, repeat)
    with load(read(given, model=model_argument, file=config).engine) as llm:
        run(llm, sizes, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. `arguments` without the program's name; None: sys.argv."""
    # The reference kernels cut products into tiles that are too small for a second BLAS thread,
    # which would only spin. Read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(args=None if arguments is None else list(arguments))
    except (ConfigError, ModelLoadError, InvalidRequest) as error:
        _fail(error.message, 2)
    except KveikError as error:
        _fail(error.message, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"kveik: {message}", err=True)
    sys.exit(status)
