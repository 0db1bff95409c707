"""A query engine for LlamaIndex that asks a running server, without a language model (pip install llama-index-core).

BTRQueryEngine().query("Who discovered X-rays?") answers from the server's store, and with retriever=... from the nodes
that a retriever of yours finds; `source_nodes` of the response are scored by their evidence.
"""

from typing import Any

from client import ask
from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode


class BTRQueryEngine(CustomQueryEngine):
    """Answer from the server's store, or from what a retriever finds."""

    url: str = "http://127.0.0.1:8080"
    key: str = ""
    top: int = 10
    retriever: BaseRetriever | None = None

    def custom_query(self, query_str: str) -> Response:
        """Ask; the metadata of the response are the citation and the probability that no passage answers."""
        source: dict[str, Any] = {"top_k": self.top}
        if self.retriever is not None:
            nodes = [found.node for found in self.retriever.retrieve(query_str)]
            named = [(node.node_id, str(node.metadata.get("title", "")), node.get_content()) for node in nodes]
            source = {"passages": [{"id": id, "title": title, "text": text} for id, title, text in named]}
        reply = ask(query_str, self.url, self.key, **source)
        read = [
            NodeWithScore(
                node=TextNode(id_=passage["id"], text=passage["text"], metadata={"title": passage["title"]}),
                score=passage["evidence"],
            )
            for passage in reply["passages"]
        ]
        told = {name: reply.get(name) for name in ("best_guess", "citation", "no_answer")}
        return Response(reply["answer"], source_nodes=read, metadata=told)
