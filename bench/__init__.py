"""Benchmarks: what a scrape costs the exporter, QEMU, and whoever waits for it."""
