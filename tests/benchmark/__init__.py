"""Tests of `wsss-rt bench`."""
