"""A store that exists: look into it, check it, change it: `python -m btr.store info|verify|add|delete|...`.

In: the folder of a store, and passages or ids. Out: the store changed, by one atomic swap of its manifest.
`updates` adds and replaces (also for the server), `articles` knows what was cut from one article, `export` copies out.
"""
