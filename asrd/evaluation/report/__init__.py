"""A comparison as table, JSON, page and plots."""
