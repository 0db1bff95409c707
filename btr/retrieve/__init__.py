"""Find the passages of a store that a question needs, by words, by meaning, or both.

In: B questions. Out: a question's ordinals in the store (top,) int64 and their scores (top,) float32, best first.
`bm25` is the index of words, `dense` that of embeddings (one bit a dimension), `fusion` joins their ranks and opens
what a store has; `indexed` keeps the results true while a store changes.
"""

# Told where no passage shares a word with a question, which happens where words alone are searched.
HINT = "Passages are found by meaning too after: python -m btr.retrieve build STORE --retriever ENCODER"
