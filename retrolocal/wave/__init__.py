"""The wave cache: zones, clustering, index, store and tripartite attention."""
