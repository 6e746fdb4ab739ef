"""Figures that the README and closing notes quote; run by `make bench`, never by the tests."""
