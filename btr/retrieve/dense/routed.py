"""Two encoders in one folder, as sentence-transformers routes between them: one for questions, one for passages.

`SentenceTransformer(folder)` then takes `encode_query` and `encode_document` each to its own (a `Router`, in
`router_config.json`); what names neither is a passage.
"""

import json
from pathlib import Path

from btr.model.checkpoint import write
from btr.retrieve.dense.encoder import MODULES, Encoder, save_modules

PACKAGE = "sentence_transformers.models"


def save_routed(queries: Encoder, passages: Encoder, folder: Path) -> None:
    """Write a folder that embeds questions with one encoder and passages with another."""
    folder.mkdir(parents=True, exist_ok=True)
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for route, encoder in (("query", queries), ("document", passages)):
        modules = save_modules(encoder.model, folder, f"{route}_")
        encoder.save_transformer(folder / modules[0]["path"])
        types |= {module["path"]: module["type"] for module in modules}
        structure[route] = [module["path"] for module in modules]
    parameters = {"default_route": "document", "allow_empty_key": True}
    router = {"types": types, "structure": structure, "parameters": parameters}
    write(folder / "router_config.json", json.dumps(router, indent=2))
    prompts = {"query": queries.model.recipe.query_prompt, "document": passages.model.recipe.passage_prompt}
    write(folder / "config_sentence_transformers.json", json.dumps({"prompts": prompts, "default_prompt_name": None}))
    write(folder / MODULES, json.dumps([{"idx": 0, "name": "0", "path": "", "type": f"{PACKAGE}.Router"}], indent=2))
