"""How earlier datasets shape the training of the next one: one file, one class each."""
