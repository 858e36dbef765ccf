"""Planted bugs: the real core with one rule taken out, and how many schedules the simulation needs to find it."""
