"""The demo: small virtual machines, real or simulated, with block jobs to look at.

`exporter.demo.main` runs it; nothing else is meant for use from outside.
"""
