"""The parts that stages are made of."""
