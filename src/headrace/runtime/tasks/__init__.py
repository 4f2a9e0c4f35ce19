"""One task: what happens to its records, and what it knows. Logic, without effects."""
