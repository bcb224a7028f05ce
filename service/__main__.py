"""`python -m service`: settings, app, server."""

import logging.config

import uvicorn

from service.app import create_app
from service.logs import log_config
from service.settings import Settings


def main() -> None:
    """Serve until a signal ends it."""
    settings = Settings()
    config = log_config(settings.log_level)
    logging.config.dictConfig(config)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=config,
        access_log=False,
        server_header=False,
    )


if __name__ == "__main__":
    main()
