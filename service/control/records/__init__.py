"""What the database alone knows, written down in object storage as well."""
