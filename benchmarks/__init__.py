"""Benchmarks. Each one prints its results and stores them in results/ with a description of the machine."""
