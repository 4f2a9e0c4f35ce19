"""The public language: it describes a topology and knows nothing of how one runs."""
