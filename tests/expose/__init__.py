"""Tests of the room expose."""
