"""Methods: how earlier datasets shape the training of the next one.

method.py          the interface, and `vanilla`, which protects nothing
nullspace.py       the method of this project: policies `preserve` and `improve`
moment_replay.py   loss of earlier datasets from their moments, for `improve`
sampled_replay.py  InfoNCE on rows sampled from their moments, for `improve`
paper.py           the published projection, for comparison
registry.py        from a model's spec to its method
"""
