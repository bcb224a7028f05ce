"""What scale.py is made of: a model of the time of an update, its constants, its test, its forecast."""
