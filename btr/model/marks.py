"""The special tokens of a BERT's tokenizer: BERT's own names of them, or MPNet's."""

from tokenizers import Tokenizer

BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
MPNET = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "[UNK]", "mask_token": "<mask>", "pad_token": "<pad>"}


def marks(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the names of the special tokens, as `tokenizer_config.json` has them.

    MPNet's vocabulary holds BERT's whole, whose names in it stand for nothing, so MPNet's are looked for first.
    """
    mpnet = all(tokenizer.token_to_id(MPNET[name]) is not None for name in ("cls_token", "sep_token"))
    return dict(MPNET if mpnet else BERT)


def ends(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return the ids of what begins a question and of what ends each part of a row; None if it has not both."""
    names = marks(tokenizer)
    first, last = (tokenizer.token_to_id(names[name]) for name in ("cls_token", "sep_token"))
    return None if first is None or last is None else (first, last)
