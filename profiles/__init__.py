"""Latency profiles of hardware."""
