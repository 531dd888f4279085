"""Tests of the room ctl."""
