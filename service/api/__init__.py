"""HTTP only: parse, call `control`, answer. No decisions."""
