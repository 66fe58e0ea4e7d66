"""The Python door: what vLLM users expect, beside transformers where there is a truth."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kveik import (
    LLM,
    ConfigError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelLoadError,
    SamplingParams,
    Unavailable,
)
from kveik.engine.plan import StepPlan, StepResult

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = ["The future of humanity is", "in the end, there was", "the"]


@pytest.fixture(scope="module")
def llm(tiny_folder: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(str(tiny_folder()), kv_memory="4MiB", block_size=8) as made:
        yield made


def test_outputs_have_the_fields_that_vllm_users_read(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [output.prompt for output in outputs] == PROMPTS
    for output in outputs:
        assert output.prompt_token_ids == llm.get_tokenizer().encode(output.prompt or "")
        assert output.finished
        choice = output.outputs[0]
        assert (choice.index, len(choice.token_ids), choice.finish_reason) == (0, 12, "length")
        assert choice.text == llm.get_tokenizer().decode(choice.token_ids)
        assert choice.logprobs is None
        assert choice.cumulative_logprob is None
        assert output.metrics is not None
        assert 0 < (output.metrics.time_to_first_token or 0) <= output.metrics.seconds


def test_one_prompt_may_come_alone_as_text_or_as_ids(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    as_text, as_dict, as_ids, listed = (
        llm.generate(prompt, GREEDY)[0].outputs[0].token_ids
        for prompt in (
            PROMPTS[0],
            {"prompt": PROMPTS[0]},
            {"prompt_token_ids": ids},
            [{"prompt_token_ids": tuple(ids)}],
        )
    )
    assert as_text == as_dict == as_ids == listed


def test_one_params_per_prompt(llm: LLM) -> None:
    lengths = [3, 1, 7]
    params = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = llm.generate(PROMPTS, sampling_params=params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    with pytest.raises(InvalidRequest, match="2 sampling parameters for 3 prompts"):
        llm.generate(PROMPTS, params[:2])


@pytest.mark.parametrize("limit", [{"max_queued_requests": 2}, {"max_queued_tokens": 5}])
def test_more_prompts_than_the_queue_holds(
    tiny_folder: Callable[..., Path], limit: dict[str, int]
) -> None:
    with LLM(tiny_folder(), max_num_seqs=2, kv_memory="4MiB", **limit) as small:
        prompts = [{"prompt_token_ids": [0, 5 + n]} for n in range(9)]
        outputs = small.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
        assert [output.prompt_token_ids for output in outputs] == [[0, 5 + n] for n in range(9)]
        assert small.engine.stats().waiting == 0


def test_a_second_call_is_served_by_the_cache_and_unchanged(llm: LLM) -> None:
    prompt = {"prompt_token_ids": list(range(20, 60))}
    cold, warm = (llm.generate(prompt, GREEDY)[0] for _ in range(2))
    assert (cold.num_cached_tokens, warm.num_cached_tokens) == (0, 39)
    assert cold.outputs[0].token_ids == warm.outputs[0].token_ids
    assert warm.usage is not None
    assert warm.usage.cached_tokens == 39
    assert cold.cache_miss is not None


def test_logprobs_hold_the_token_first_and_sum_up(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=5, logprobs=2, ignore_eos=True)
    choice = llm.generate(PROMPTS[0], params)[0].outputs[0]
    assert choice.logprobs is not None
    own = [place[token] for place, token in zip(choice.logprobs, choice.token_ids, strict=True)]
    assert choice.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in own))
    for place, token in zip(choice.logprobs, choice.token_ids, strict=True):
        assert next(iter(place)) == token
        assert 2 <= len(place) <= 3
        assert place[token].decoded_token == llm.get_tokenizer().token_text(token)
        by_rank = sorted(place.values(), key=lambda entry: entry.rank or 0)
        assert [entry.logprob for entry in by_rank] == sorted(
            (entry.logprob for entry in by_rank), reverse=True
        )


def test_none_means_not_given() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("stop", "stop_token_ids", "logit_bias", "seed"))
    assert SamplingParams(**nothing) == SamplingParams()


def test_choices_come_in_order(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=6, ignore_eos=True)
    choices = llm.generate(PROMPTS[0], params)[0].outputs
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in choices}) > 1


def test_score_is_the_log_probability_of_transformers(
    tiny_folder: Callable[..., Path],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    llm = LLM(model=str(tiny_folder()), dtype="float32")
    truth = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    for text, score in zip(PROMPTS, llm.score(PROMPTS), strict=True):
        ids = llm.get_tokenizer().encode(text)
        assert score.prompt_token_ids == ids
        assert score.logprobs[0] is None
        with torch.no_grad():
            table = torch.log_softmax(truth(torch.tensor([ids])).logits[0], -1)
        expected = [float(table[at, token]) for at, token in enumerate(ids[1:])]
        assert score.logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_score_of_a_cached_text_still_covers_every_token(llm: LLM) -> None:
    cold, warm = (llm.score("the same text, scored again")[0].logprobs for _ in range(2))
    assert cold == warm
    assert sum(value is None for value in warm) == 1


def test_chat_takes_one_conversation_or_several(llm: LLM) -> None:
    first = [{"role": "user", "content": "Hi"}]
    second = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go"}]
    alone = llm.chat(first, GREEDY)
    both = llm.chat([first, second], GREEDY)
    assert len(alone) == 1
    assert both[0].outputs[0].token_ids == alone[0].outputs[0].token_ids
    assert both[1].prompt_token_ids == llm.get_tokenizer().encode_chat(second)
    assert both[1].prompt == llm.get_tokenizer().render_chat(second)


def test_deltas_join_to_the_text_of_generate(llm: LLM) -> None:
    params = SamplingParams(n=2, temperature=1.0, seed=5, max_tokens=15, ignore_eos=True)
    whole = llm.generate(PROMPTS[0], params)[0]
    deltas = list(llm.stream(PROMPTS[0], params))
    for choice in whole.outputs:
        own = [delta for delta in deltas if delta.index == choice.index]
        assert "".join(delta.text for delta in own) == choice.text
        assert [token for delta in own for token in delta.token_ids] == choice.token_ids
        assert [delta.finish_reason for delta in own][-1] == "length"
        assert all(delta.finish_reason is None for delta in own[:-1])
    assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 30


def test_a_stream_of_messages_is_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = "".join(delta.text for delta in llm.stream(messages, GREEDY))
    assert text == llm.chat(messages, GREEDY)[0].outputs[0].text


def test_closing_a_stream_frees_its_blocks_and_keeps_the_prefix(llm: LLM) -> None:
    prompt = {"prompt_token_ids": list(range(100, 140))}
    stream = llm.stream(prompt, SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    assert llm.engine.stats().running == 1
    stream.close()  # type: ignore[attr-defined]
    stats = llm.engine.stats()
    assert (stats.running, stats.cache.leased_blocks) == (0, (0,))
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens >= 32


def test_a_bad_prompt_raises_and_leaves_nothing_behind(llm: LLM) -> None:
    too_long = {"prompt_token_ids": [5] * 600}
    with pytest.raises(ContextLengthExceeded):
        llm.generate([PROMPTS[0], too_long], GREEDY)
    assert llm.engine.stats().running == 0
    assert llm.generate(PROMPTS[0], GREEDY)[0].finished


@pytest.mark.parametrize("prompt", [1, {"text": "a"}, {"prompt": 3}, {"prompt_token_ids": "abc"}])
def test_what_is_no_prompt_is_named(llm: LLM, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        llm.generate([prompt], GREEDY)


def test_defaults_come_from_generation_config(tmp_path: Path, llm: LLM) -> None:
    import tiny

    folder = tiny.tiny_llama(tmp_path / "model")
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": 2, "do_sample": true, "temperature": 0.5, "top_k": 7, "top_p": 0.9}'
    )
    with LLM(folder, kv_memory="1MiB") as other:
        params = other.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 0.9)
        drawn = other.generate(PROMPTS[0])[0].outputs[0].token_ids
        assert 1 <= len(drawn) <= 16
    assert llm.get_default_sampling_params().temperature == 1.0


def test_options_are_named_when_they_are_wrong(tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match="gpu_memory_utilization"):
        LLM(tiny_folder(), gpu_memory_utilization=0.9)
    with pytest.raises(ConfigError, match="kv_memory"):
        LLM(tiny_folder(), kv_memory="many")
    with pytest.raises(ConfigError, match="block_size"):
        LLM(tiny_folder(), block_size=12)
    with pytest.raises(ModelLoadError):
        LLM("/nowhere/at/all")


def test_after_close_nothing_is_accepted(tiny_folder: Callable[..., Path]) -> None:
    llm = LLM(tiny_folder(), kv_memory="1MiB")
    llm.close()
    llm.close()
    with pytest.raises(Unavailable):
        llm.generate("a", GREEDY)


def test_two_threads_may_share_one_llm(llm: LLM) -> None:
    expected = [llm.generate(prompt, GREEDY)[0].outputs[0].token_ids for prompt in PROMPTS]
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        found[number] = llm.generate(PROMPTS[number], GREEDY)[0].outputs[0].token_ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[number] for number in range(3)] == expected


def test_ctrl_c_leaves_the_engine_whole(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python installs no handler of its own where it was started with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with LLM(tiny_folder(), kv_memory="1MiB") as llm:
        compute, steps = llm.engine._runner.run, 0

        def interrupted(plan: StepPlan) -> StepResult:
            nonlocal steps
            steps += 1
            if steps == 2:
                signal.raise_signal(signal.SIGINT)
            return compute(plan)

        monkeypatch.setattr(llm.engine._runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, SamplingParams(max_tokens=50, ignore_eos=True))
        stats = llm.engine.stats()
        assert (stats.running, stats.cache.fenced_blocks) == (0, (0,))
        llm.engine.check()
        assert llm.generate(PROMPTS[0], GREEDY)[0].finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_progress_bar_when_asked(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, GREEDY)
    assert capfd.readouterr().err == ""
    llm.generate(PROMPTS, GREEDY, use_tqdm=True)
    shown = capfd.readouterr().err
    assert "3/3" in shown
    assert "tokens/s" in shown


ARTICLE = """
from kveik import LLM, SamplingParams

prompts = ["The future of humanity is"]
sampling_params = SamplingParams(temperature=0.8,
top_p=0.95)

llm = LLM(model={model!r})

Responses = llm.generate(prompts, sampling_params)
print(f"Prompt: {{ Responses[0].prompt!r}}, Generated text: {{
Responses[0].outputs[0].text!r}}")
"""


def test_the_vllm_program_of_the_article(tiny_folder: Callable[..., Path]) -> None:
    program = ARTICLE.format(model=str(tiny_folder()))
    program = program.replace("text: {\nResponses", "text: {Responses")  # a newline needs 3.12
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Prompt: 'The future of humanity is', Generated text: '")


def test_importing_kveik_costs_nothing() -> None:
    program = textwrap.dedent("""
        import sys, kveik
        heavy = {"torch", "transformers", "fastapi", "starlette", "uvicorn", "pydantic", "numpy",
                 "huggingface_hub", "tokenizers", "jinja2", "typer", "rich"}
        print(sorted(heavy & set(sys.modules)))
        from kveik import LLM, SamplingParams, RequestOutput, ConfigError
        print(sorted({"torch", "transformers", "fastapi", "starlette", "uvicorn", "pydantic",
                      "huggingface_hub", "typer", "rich"} & set(sys.modules)))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n", done.stderr


def test_public_names_exist() -> None:
    import kveik

    assert {"LLM", "SamplingParams", "RequestOutput", "CompletionOutput"} <= set(kveik.__all__)
    for name in kveik.__all__:
        assert getattr(kveik, name) is not None
        assert name in dir(kveik)
    with pytest.raises(AttributeError):
        _ = kveik.nothing_of_this_name
