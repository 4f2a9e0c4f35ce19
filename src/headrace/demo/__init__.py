"""The demonstration: card payments and what becomes of them."""
