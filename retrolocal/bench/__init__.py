"""`retrolocal bench`: how fast attention, generation and reading are."""
