"""A vocabulary of our own: lower-cased BPE with T5's special tokens and marks (▁ begins a word), punctuation apart.

Lower case because a small reader finds a question's words in a passage by their identity.
"""

import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from btr.corpus import Passage
from btr.errors import InputError

ALPHABET = sorted(set(string.printable.lower()) - set(string.whitespace))  # known whether or not the text has them


def train_tokenizer(passages: Iterable[Passage], size: int, path: Path) -> Tokenizer:
    """Learn `size` pieces from passages and write tokenizer.json to path.

    Raises:
        InputError: more characters than pieces.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # White space becomes one space: a word after a line break is then the same word, beginning with ▁, as elsewhere.
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(100))],
        show_progress=False,
        initial_alphabet=ALPHABET,
        limit_alphabet=600,
        max_token_length=16,
    )
    tokenizer.train_from_iterator((f"{passage.title} {passage.text}" for passage in passages), trainer)
    if tokenizer.get_vocab_size() > size:
        raise InputError(f"size is {size}, the characters alone are {tokenizer.get_vocab_size()} pieces; give more")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tokenizer.save(str(temporary))
    temporary.replace(path)
    return tokenizer


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, whatever its name; InputError if it is not there or not a tokenizer."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; make one with: python -m btr.train tokenizer --out {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a tokenizer ({reason}); make one with: python -m btr.train tokenizer") from error
