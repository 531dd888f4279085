"""Tests of the project itself: its layout, papers and packages."""
