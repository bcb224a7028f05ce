"""The method as pure maths: knows tensors and nothing else. README.md has it on one page."""
