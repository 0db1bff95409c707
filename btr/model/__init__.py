"""The networks: tensors in, tensors out, nothing of texts or files but a checkpoint's own.

In: token ids (R, T) of rows `[question; passage]`, or the stored signs of passages, int8 or bits (M, D).
Out: states (R, T, D), logits of answers (generative, V words) or of spans (extractive, start and end of R * T tokens).
`fid` and `bert_fid` write answers, `span_head` points at them; all hold a passage in `full`, `float` or `binary`.
Made for `btr.reader` and `btr.train`; equal to transformers' models where those exist (tests/btr/model).
"""
