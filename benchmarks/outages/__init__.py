"""What serving_chaos.py is made of: what is killed, who asks meanwhile, and what they saw."""
