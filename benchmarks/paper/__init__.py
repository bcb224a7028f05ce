"""The experiments of "Continual Multimodal Contrastive Learning" (arXiv 2503.14963), as reconstructed.

protocol.py       the eleven steps, encoders, presets and deviations
sources/          one recipe per source: where it is from, its licence, its layout, its rows
families.py       the declarations of the encoders; fake.py the stand-ins for tests
prepare.py        sources through the product's prepare stage to features; caches.py the authors' caches
features.py       features by source and modality, and the steps that are made of them
unscaled.py       the published update around any method: one direction, linear decay, clipping, raw features
metrics.py        Acc and recall as published
cells.py          one encoder, method and seed through the eleven steps; results.py keeps them on disk
report.py         table, page, pictures, and the last line
tiny.py           small folders of the same layouts; synthetic.py a stand-in for the sources, at the paper's sizes
"""
