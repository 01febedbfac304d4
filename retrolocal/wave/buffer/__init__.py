"""The wave buffer: clusters of a slow tier in a bounded set of slots, read ahead by threads."""
