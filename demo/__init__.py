"""Demonstrations: what the quickstart embeds, and how its images were made."""
