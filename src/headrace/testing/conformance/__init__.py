"""Suites of tests that hold for every implementation of a contract; subclass one and give it the implementation."""
