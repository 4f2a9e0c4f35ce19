"""Tools for testing topologies, and the contracts that logs, stores and checkpoint stores are tested against."""
