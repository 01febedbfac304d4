"""The parsers, one module per format; they run in the guarded child and nowhere else.

A module here imports the standard library, one parser library and its siblings, none of the rest
of the program. `work(file, request)` yields JSON values; the module of the same name one folder up
checks and judges them.
"""
