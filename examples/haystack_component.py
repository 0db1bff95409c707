"""A reader for Haystack 2 pipelines that asks a running server (pip install haystack-ai).

Run by hand with haystack-ai 3.4.1, in a pipeline with and without documents, and by a test where Haystack is installed.
"""

from client import ask
from haystack import Document, component


@component
class BTRReader:
    """Answer a query from documents, or from the server's store where none are given."""

    def __init__(self, url: str = "http://127.0.0.1:8080", key: str = "") -> None:
        self.url, self.key = url, key

    @component.output_types(answer=str, reply=dict)
    def run(self, query: str, documents: list[Document] | None = None) -> dict[str, object]:
        """Ask; `reply` has the passages, their evidence and the citation."""
        passages = [
            {"id": d.id, "title": str(d.meta.get("title", "")), "text": d.content} for d in documents or [] if d.content
        ]
        reply = ask(query, self.url, self.key, **({"passages": passages} if passages else {}))
        return {"answer": reply["answer"], "reply": reply}
