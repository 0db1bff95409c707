"""Find passages by meaning: encoders, an index of one bit per dimension, and its fusion with BM25.

Importing this package imports nothing; `btr.dense.fusion.open_retriever` is what a command needs.
"""
