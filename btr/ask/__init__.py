"""Answer questions at a terminal: `python -m btr.ask STORE "question"`.

In: a store, or documents of which one is made first and kept (`cache`), and questions: typed, given, or piped in.
Out: the answer, how sure it is, and the passage that says so; for programs, a JSON object a question.
`asker` finds passages and reads them, `show` prints.
"""
