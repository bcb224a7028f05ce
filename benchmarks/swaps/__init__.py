"""What serving_swaps.py is made of: whoever moves the pointer, and what is seen meanwhile."""
