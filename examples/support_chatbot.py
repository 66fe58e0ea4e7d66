"""A shop's support: one product text for all customers, each in a session of their own."""

import time

from kveik import LLM, CacheOptions, SamplingParams

PRODUCTS = """You are the support of a television shop and know these products.
The 55-inch TV is 123 cm wide and 71 cm high, weighs 15 kg and has three HDMI sockets.
The 2-year warranty covers the screen, the remote control and the power supply.
The wall bracket carries 40 kg, fits the 55-inch TV and is mounted with four screws."""
CUSTOMERS = {
    "anna": ["How wide is the 55-inch TV?", "Does the 2-year warranty cover the screen?"],
    "boris": ["Does the wall bracket carry the 55-inch TV?", "How many screws does it need?"],
    "clara": ["What does the 2-year warranty cover?", "And the wall bracket?"],
}
PARAMS = SamplingParams(temperature=0, max_tokens=12)


def support(llm: LLM) -> int:
    """Prompt tokens that were computed for all customers together."""
    products = [{"role": "system", "content": PRODUCTS}]
    computed = llm.caches.create("products", messages=products, public=True).tokens
    for customer, questions in CUSTOMERS.items():  # nobody sees what another one asked
        options = CacheOptions(namespace=customer, cached_content="products")
        with llm.session(cache=options) as session:
            for question in questions:
                computed += session.chat(question, PARAMS).usage.computed_prompt_tokens
        assert not llm.cache.sessions(), "the conversation is over, its blocks are free"
    return computed


computed = {}
for on in (False, True):
    with LLM(enable_prefix_caching=on) as llm:
        started = time.perf_counter()
        computed[on] = support(llm)
        print(f"cache {on}: {computed[on]} tokens, {time.perf_counter() - started:.2f} s")
assert computed[True] < computed[False] / 2
