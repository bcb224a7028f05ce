"""What is decided about models and their versions."""
