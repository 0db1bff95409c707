"""Measure speed and size on this machine: `python -m btr.bench`, ratios of things run in turn in one process.

In: shapes (passages, tokens, model sizes). Out: a table or JSON of milliseconds, ratios and bytes a token.
`contenders` are what is compared with, `kernels` measures the kernels apart.
"""
