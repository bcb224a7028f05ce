"""A lost database, rebuilt from what lies in object storage."""
