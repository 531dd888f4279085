"""qemu-block-exporter: QEMU's block layer in Prometheus."""

__version__ = "0.1.0"
