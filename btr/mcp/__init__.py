"""Serve answers to assistants: a server of the Model Context Protocol over standard input and output.

In: the calls of two tools, `answer` (a question) and `search` (a question, and how many passages). Out: what the routes
of `btr.serve` give for the same question, as JSON: the answer with its passages, or passages with scores.
`tools` says what the tools are; the service behind them is `btr.serve`'s own.
"""
