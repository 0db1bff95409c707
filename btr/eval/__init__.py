"""Score a reader: `python -m btr.eval nq dev.jsonl`, answers in, figures with intervals out.

In: questions with their accepted answers, and passages of their own or of a store (`evidence`).
Out: `predictions`, one JSON line an answer, resumable; `figures`, each with n and a 95 % interval; `plots`.
"""
