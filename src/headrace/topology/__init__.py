"""The graph of a topology: immutable data, its rules, and the plan of how it runs."""
