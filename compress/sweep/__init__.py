"""Budgets met on the real clock, and swept: one engine a budget and target, on one page."""
