"""Tell which sentence of what was read has the most evidence for the answer."""

from collections.abc import Sequence

import numpy as np

from btr.reader.answer import Answer, Span
from btr.reader.passages import PassageText, titled
from btr.reader.reader import Reader
from btr.storage.encoded import Encoded
from btr.words import sentences_of


def best_sentence(reader: Reader, answer: Answer, passages: Sequence[PassageText] | Encoded) -> Span | None:
    """Find the sentence whose tokens have the most of the evidence; None without texts, or evidence in them.

    A token counts for the sentence that its last character is in; of equal sentences the first is taken.
    """
    best, most = None, 0.0
    for n, (title, text) in enumerate(titled(passages)):
        evidence, bounds = answer.token_evidence[n], sentences_of(text)
        if not bounds or float(evidence.sum()) <= most:
            continue
        starts, shares = [start for start, _ in bounds], np.zeros(len(bounds))
        [ids], _ = reader.passage_ids([(title, text)])
        for token, end in reader._text.text_places(title, text, np.array(ids)):
            place = int(np.searchsorted(starts, end - 1, "right")) - 1
            shares[max(place, 0)] += float(evidence[token])
        if shares.max() > most:
            chosen = int(shares.argmax())
            best, most = Span(n, *bounds[chosen]), float(shares[chosen])
    return best
