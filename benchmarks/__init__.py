"""Measurements: each prints what it found and keeps it under results/ with the machine it ran on."""
