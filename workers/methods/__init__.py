"""Methods: how earlier datasets shape the training of the next one.

method.py          the interface, and `vanilla`, which protects nothing
closed_form.py     the method of this project, policy `improve`, and the start of `preserve`: heads solved from moments
polish.py          InfoNCE on rows sampled from moments, for both
nullspace.py       policies `preserve` and `replay`: heads trained in what earlier datasets leave free
moment_replay.py   loss of earlier datasets from their moments, for `replay`
sampled_replay.py  InfoNCE on rows sampled from their moments, for `replay`
paper.py           the published projection, for comparison
registry.py        from a model's spec to its method
"""
