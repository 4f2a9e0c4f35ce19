"""One worker: its tasks, from where they are opened to where they are handed over."""
