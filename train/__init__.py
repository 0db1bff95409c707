"""Make a reader: losses, stages, and the one loop that runs them.

In: questions with answers and passages, or texts, and a model to start from. Out: a reader's folder (RUN/reader), and
what it takes to go on (RUN/checkpoint.pt). `sources` draws examples, `data` and `spans` lay them out as rows of token
ids (R, T), `objectives` and `losses` say what a step minimises, `stages` with which weights, `loop` takes the steps;
`kale` and `leaf` are for encoders of questions, whose loop is `alignment`.
"""
