"""Read every passage of a corpus once and keep it as bits in a store: `python -m btr.precompute corpus`.

In: a corpus (`btr.corpus`) and a reader. Out: a store (`btr.storage`): per passage its ids and M tokens of D bits, with
the index of words, and the dense one where it is asked for.
`shards` encodes one range of passages, resumably; `workers` does it in processes, `cluster` on many machines.
"""
