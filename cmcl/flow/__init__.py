"""How calls are carried out: what they ask for as data, and the two loops that do it."""
