"""The canary version: which callers get it, and how it compares with the live version."""
