"""Option groups: typed, checked once, trusted after."""
