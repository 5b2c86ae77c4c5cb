"""Long hostile runs, started by hand; `tests/hostile` has short ones."""
