"""`retrolocal eval`: how faithful a cache is to attention over everything."""
