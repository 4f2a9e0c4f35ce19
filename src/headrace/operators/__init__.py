"""The logic of steps: pure functions from batches and state to batches."""
