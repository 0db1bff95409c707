"""Ask a running server with OpenAI's own client (pip install openai).

python examples/openai_client.py "Who discovered X-rays?" [URL]
"""

import sys

from openai import OpenAI


def ask(question: str, url: str = "http://127.0.0.1:8080", key: str = "none") -> tuple[str, list[dict[str, object]]]:
    """Return the answer, streamed, and its citations."""
    with OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        model = client.models.list().data[0].id
        messages = [{"role": "user", "content": question}]
        said, citations = "", []
        for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
            said += chunk.choices[0].delta.content or ""
            citations = chunk.citations  # btr's own, in every chunk
        return said, citations


if __name__ == "__main__":
    text, cited = ask(*sys.argv[1:3])
    print(text)
    for one in cited:
        print(f"  {one['id']}, {one['title']}: {one.get('quote', '')}")
