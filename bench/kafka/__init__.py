"""The jobs of the other benchmarks on a Kafka broker of their own."""
