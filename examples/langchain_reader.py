"""A retriever and a reader for LangChain, which ask a running server (pip install langchain-core).

BTRRetriever finds passages of the server's store; `read` answers from the documents of any retriever:

    chain = {"question": RunnablePassthrough(), "documents": BTRRetriever(top=5)} | RunnableLambda(read)
    chain.invoke("Who discovered X-rays?")["answer"]
"""

from typing import Any

from client import ask
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

URL = "http://127.0.0.1:8080"


class BTRRetriever(BaseRetriever):
    """Find passages of the server's store, that with most evidence for the answer first."""

    url: str = URL
    key: str = ""
    top: int = 10

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        reply = ask(query, self.url, self.key, top_k=self.top)
        return [
            Document(passage["text"], id=passage["id"], metadata={key: passage[key] for key in ("title", "evidence")})
            for passage in reply["passages"]
        ]


def read(asked: dict[str, Any], url: str = URL, key: str = "") -> dict[str, Any]:
    """Answer `question` from `documents`; returns the answer (or a guess), its citation, the probability of none."""
    passages = [
        {"id": document.id, "title": document.metadata.get("title", ""), "text": document.page_content}
        for document in asked["documents"]
    ]
    reply = ask(asked["question"], url, key, passages=passages)
    return {name: reply.get(name) for name in ("answer", "best_guess", "citation", "no_answer")}
