"""What a person sees: the line-by-line chat of a terminal or a pipe."""
