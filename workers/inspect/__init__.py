"""Questions about a model that its stored versions answer, without training and without encoders."""
