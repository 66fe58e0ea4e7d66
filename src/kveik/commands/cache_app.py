"""The options of `kveik cache ...`; what the commands do is in `kveik.commands.cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kveik.config import DEFAULT_POLICY

if TYPE_CHECKING:
    from kveik.commands.remote import Remote

app = typer.Typer(
    help="See and manage the cache of a running server; replay what it did.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Url = Annotated[str, typer.Option(envvar="KVEIK_URL", help="Of the server")]
Key = Annotated[str | None, typer.Option("--api-key", envvar="KVEIK_API_KEY", help="Of the server")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON")]
Name = Annotated[str, typer.Argument(help="Of a named cache")]
Top = Annotated[int, typer.Option(help="How many")]

_URL = "http://127.0.0.1:8000"


@app.command()
def ls(
    url: Url = _URL,
    api_key: Key = None,
    as_json: AsJson = False,
    blocks: Annotated[bool, typer.Option("--blocks", help="The hottest blocks instead")] = False,
    sessions: Annotated[bool, typer.Option("--sessions", help="Open sessions instead")] = False,
    top: Top = 20,
) -> None:
    """List named caches."""
    from kveik.commands import cache

    remote = _remote(url, api_key)
    if blocks:
        cache.hottest(remote, top, as_json=as_json)
    elif sessions:
        cache.sessions(remote, as_json=as_json)
    else:
        cache.ls(remote, as_json=as_json)


@app.command()
def show(name: Name, url: Url = _URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """One named cache: size, hits, time left."""
    from kveik.commands import cache

    cache.show(_remote(url, api_key), name, as_json=as_json)


@app.command()
def warm(
    file: Annotated[Path, typer.Argument(help="Manifest, YAML or JSON")],
    url: Url = _URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Compute the entries of a manifest now."""
    from kveik.commands import cache

    cache.warm(_remote(url, api_key), file, as_json=as_json)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of named caches")],
    url: Url = _URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Delete named caches."""
    from kveik.commands import cache

    cache.rm(_remote(url, api_key), names, as_json=as_json)


@app.command()
def invalidate(
    tag: Annotated[str | None, typer.Option(help="Everything with this tag")] = None,
    document: Annotated[str | None, typer.Option(help="What came from this document")] = None,
    version: Annotated[str | None, typer.Option(help="With --document: this version of it")] = None,
    not_version: Annotated[
        str | None, typer.Option(help="With --document: every version but this one")
    ] = None,
    session: Annotated[str | None, typer.Option(help="What this session computed")] = None,
    context: Annotated[
        str | None, typer.Option(help="What was computed under this context")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What this named cache holds")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prompts that begin with this text")] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Computed before so long, as 90s or 1h")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything of your namespace, names included")
    ] = False,
    url: Url = _URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make cached content unreachable at once. Conditions add up: all must hold."""
    from kveik.commands import cache
    from kveik.config import parse_duration

    selector = {
        "tag": tag,
        "document": document,
        "version": version,
        "not_version": not_version,
        "session": session,
        "context": context,
        "name": name,
        "prefix": prefix,
        "older_than": None if older_than is None else parse_duration(older_than, "--older-than"),
        "all": everything or None,
    }
    cache.invalidate(_remote(url, api_key), selector, as_json=as_json)


@app.command()
def explain(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|TEXT", help='A file of messages or text, "-", or a prompt'),
    ],
    url: Url = _URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """How much of a prompt would come from the cache now, and why not more."""
    from kveik.commands import cache

    cache.explain(_remote(url, api_key), source, as_json=as_json)


@app.command()
def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end")] = False,
    rows: Annotated[int, typer.Option(help="Of each list")] = 6,
    url: Url = _URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """The cache at a glance: saved today, hit rate and memory over time, other sizes, requests."""
    from kveik.commands import cache_top

    cache_top.top(
        _remote(url, api_key), url, interval=interval, once=once, rows=rows, as_json=as_json
    )


@app.command()
def manifest(top: Top = 20, url: Url = _URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """Write a manifest of what is hot now: kveik cache manifest --top 20 > warm.yaml"""
    from kveik.commands import cache

    cache.manifest(_remote(url, api_key), top, as_json=as_json)


@app.command()
def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="What --record wrote, or a trace of Mooncake")
    ],
    policy: Annotated[str, typer.Option(help="Names with commas, all, or module:Class")] = "all",
    blocks: Annotated[str, typer.Option(help="Sizes of the KV pool, with commas")] = (
        "1000,4000,16000"
    ),
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens, where the trace does not say [512]")
    ] = None,
    since: Annotated[
        float, typer.Option(min=0.0, help="Count only what arrives after so many seconds")
    ] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture into this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV")] = False,
) -> None:
    """What would another policy, or more memory, make of this traffic? Needs no server."""
    from kveik.commands.replay import ReplayQuestion, run

    question = ReplayQuestion(trace, policy, blocks, block_size, since, plot)
    run(question, json_wanted=as_json, csv_wanted=as_csv)


@app.command()
def simulate(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="What --record wrote, or a trace of Mooncake")
    ],
    replicas: Annotated[str, typer.Option(help="How many, 1 to 1000, with commas")] = "1,4,16",
    route: Annotated[
        str,
        typer.Option(
            help="With commas: round-robin, random, least-loaded, session, prefix-affinity; or all"
        ),
    ] = "all",
    blocks: Annotated[int, typer.Option(min=1, help="Of the KV pool of each replica")] = 1000,
    policy: Annotated[
        str, typer.Option(help="Of eviction: a name, or module:Class")
    ] = DEFAULT_POLICY,
    service: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of service times, or of kveik bench --json; again for another length"
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Requests come so many times as fast")] = 1.0,
    load_bound: Annotated[
        float, typer.Option(help="prefix-affinity: up to so many times the mean load, or inf")
    ] = 1.25,
    least_match: Annotated[
        float, typer.Option(help="prefix-affinity: share of a prompt below which it is no match")
    ] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the route random")] = 0,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens, where the trace does not say [512]")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture into this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV")] = False,
) -> None:
    """What would this traffic be like on so many replicas, routed like this? Needs no server."""
    from kveik.commands.simulate import SimulateQuestion, run

    question = SimulateQuestion(
        trace,
        replicas,
        route,
        blocks,
        policy,
        service or (),
        speed,
        load_bound,
        least_match,
        seed,
        block_size,
        plot,
    )
    run(question, json_wanted=as_json, csv_wanted=as_csv)


def _remote(url: str, api_key: str | None) -> Remote:
    """KVEIK_API_KEY may list several keys, as the server reads it; the first one is used."""
    from kveik.commands.remote import Remote

    return Remote(url, None if api_key is None else api_key.partition(",")[0].strip())
