"""A deterministic simulation of workers: real runtime, simulated time, disks, network and failures."""
