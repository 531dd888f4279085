"""Tests of the room qmp."""
