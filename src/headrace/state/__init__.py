"""Ordered byte stores, and the write-behind cache and key layouts over them."""
