"""Training losses; imports nothing, as its modules load torch."""
