"""The method as pure maths: tensors in, tensors out. README.md derives it on one page.

Names carry shapes: `weight_EI` is E × I. Everywhere in this package

    B, N   rows                              E      width of the embeddings
    F      width of a raw feature            I, J   widths of what the two heads of a pair read
    K, L   numbers of directions             u, v   the two modalities of a pair

and `mT` is the transpose of a matrix.
"""
