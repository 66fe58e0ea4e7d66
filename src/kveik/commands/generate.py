"""`kveik generate`: complete one prompt in the terminal, or a file of them."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from kveik.batch import run_batch
from kveik.engine.request import SamplingParams
from kveik.errors import ConfigError
from kveik.llm import LLM


def generate(llm: LLM, prompt: str, params: SamplingParams, *, as_chat: bool) -> None:
    """Print the text as it comes (several choices: one after the other, numbered)."""
    message = [{"role": "user", "content": prompt}]
    if params.n > 1:
        outputs = llm.chat(message, params) if as_chat else llm.generate(prompt, params)
        for choice in outputs[0].outputs:
            typer.echo(f"[{choice.index}] {choice.text}")
        return
    for delta in llm.stream(message if as_chat else prompt, params):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    typer.echo()


def read_prompt(prompt: str | None) -> str:
    """The argument, or the whole of standard input. Raises ConfigError where there is neither."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise ConfigError('generate: give a prompt, or --input FILE; "-" reads standard input')
    return sys.stdin.read()


def generate_file(llm: LLM, source: Path, target: Path, params: SamplingParams) -> None:
    """Complete every line of `source` into `target`; see kveik.batch."""
    summary = run_batch(llm, source, target, params)
    typer.echo(
        f"{summary.done} done, {summary.failed} failed, {summary.skipped} were there already: "
        f"{target}",
        err=True,
    )
