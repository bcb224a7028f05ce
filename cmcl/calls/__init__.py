"""What can be asked, a module per kind of thing: each call as one flow, without any network."""
