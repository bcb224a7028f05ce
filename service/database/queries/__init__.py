"""Every query as one function, one module a table or a purpose."""
