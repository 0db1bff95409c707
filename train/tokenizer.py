"""A vocabulary of our own: lower-cased BPE with T5's special tokens and marks (▁ begins a word), punctuation apart.

Lower case because a small reader finds a question's words in a passage by their identity.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from btr.corpus import Passage


def train_tokenizer(passages: Iterable[Passage], size: int, path: Path) -> Tokenizer:
    """Learn `size` pieces from passages and write tokenizer.json to path."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        show_progress=False,
        limit_alphabet=600,
        max_token_length=16,
    )
    tokenizer.train_from_iterator((f"{passage.title} {passage.text}" for passage in passages), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer
