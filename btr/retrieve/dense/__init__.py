"""Find passages by meaning: encoders, an index of one bit per dimension, how it follows its store.

In: texts. Out: embeddings (N, D) float32, kept as signs after a rotation: N rows of D / 8 bytes.
"""
