"""Tests, in the folders of what they test; CONTRIBUTING.md tells the tiers."""
