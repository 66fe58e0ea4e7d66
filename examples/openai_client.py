"""The official OpenAI client against a running server: python examples/openai_client.py [URL]"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="not-needed-on-loopback")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Good morning! How do you do?"}]

for attempt in ("cold", "warm"):
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=40, temperature=0
    )
    cached = answer.usage.prompt_tokens_details.cached_tokens
    print(f"{attempt}: {answer.choices[0].message.content!r}")
    print(f"      {cached} of {answer.usage.prompt_tokens} prompt tokens from the cache")

for chunk in client.chat.completions.create(
    model=model, messages=messages, max_tokens=40, stream=True
):
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
print()
