"""In place of ImageBind: the interface that its encoder uses, with a small random model."""
