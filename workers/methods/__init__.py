"""Methods: how earlier datasets shape the training of the next one.

method.py    the interface, and `vanilla`, which protects nothing
improve.py   policy `improve`: all heads solved from the moments of all datasets
polish.py    InfoNCE on rows drawn from moments, the last step of `improve`
preserve.py  policy `preserve`: heads trained in what earlier datasets leave free
registry.py  from a model's spec to its method
"""
