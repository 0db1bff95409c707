"""Ask a running server from Python, with the standard library alone.

python examples/client.py "Who discovered X-rays?" [URL]
"""

import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any


def ask(
    question: str, url: str = "http://127.0.0.1:8080", key: str = "", tries: int = 3, **more: Any
) -> dict[str, Any]:
    """Answer a question; `more` are fields of /v1/answer, e.g. top_k=5. A full queue is tried again when it says."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/answer", json.dumps({"question": question} | more).encode(), headers)
    for left in reversed(range(tries)):
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                reply: dict[str, Any] = json.load(response)
                return reply
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in (429, 503) or not left:
                    raise RuntimeError(json.load(error)["error"]["message"]) from error
                time.sleep(float(error.headers.get("Retry-After", "1")))
    raise ValueError("tries must be 1 or more")


if __name__ == "__main__":
    found = ask(sys.argv[1], *sys.argv[2:3])
    print(found["answer"] or f"no passage answers this; best guess: {found.get('best_guess', 'none')}")
    for best in found["passages"][:1]:
        print(f"  from {best['id']} ({best['title']}), {found['bits_read']:,} bits, {found['timings']['total']:.3f} s")
