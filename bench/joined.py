"""Prompts joined from modules with exact numbers of tokens, for the benches.

prompt(lead, modules, text, before=())      a layout: the lead, a text, modules, a text
request(layout, how, block_size, params)    what the engine is told of it
ordinary(tokens, params)                    a plain prompt of these tokens
run(llm, request)                           computes it alone
"""

from __future__ import annotations

from collections.abc import Sequence

from kveik import LLM, SamplingParams
from kveik.engine.modules.joins import Join, join_layout
from kveik.engine.modules.layout import Layout, Piece, Unit
from kveik.engine.request import Request
from kveik.outputs import RequestOutput

FIRST_TOKEN = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def prompt(
    lead: Sequence[int],
    modules: Sequence[Sequence[int]],
    text: Sequence[int],
    before: Sequence[int] = (),
) -> Layout:
    """Packed: everything is seen one behind the other. before: computed in the prompt, between the
    lead and the modules."""
    pieces = [Piece("frame", tuple(lead), 0)]
    if before:
        pieces.append(Piece("text", tuple(before), pieces[-1].end))
    for number, module in enumerate(modules):
        pieces.append(Piece("module", tuple(module), pieces[-1].end, str(number), number))
    pieces.append(Piece("text", tuple(text), pieces[-1].end))
    units = tuple(Unit((str(n),), tuple(module)) for n, module in enumerate(modules))
    return Layout(tuple(lead), tuple(pieces), units)


def request(
    layout: Layout, how: Join, block_size: int, params: SamplingParams = FIRST_TOKEN
) -> Request:
    return Request(layout.token_ids, params, joined=join_layout(layout, how, block_size))


def ordinary(tokens: Sequence[int], params: SamplingParams = FIRST_TOKEN) -> Request:
    return Request(tuple(tokens), params)


def run(llm: LLM, one: Request) -> RequestOutput:
    sink = llm.collector(one)
    for _ in llm.run([(one, sink)]):
        if sink.error is not None:
            raise sink.error
    return sink.output
