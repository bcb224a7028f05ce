"""Types of the two HTTP APIs, one module per subject: used by the routes, the page and the client alike."""
