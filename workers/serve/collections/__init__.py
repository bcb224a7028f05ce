"""Collections that follow the model: features are kept, vectors are made anew."""
