"""Beside a server: its page."""

from __future__ import annotations

from qml_mp.ipc.side import SideArguments
from qml_mp.setting_kinds import check_reach, host_and_port
from qml_mp.settings import ServerConfig
from qml_mp.side.link import SupervisorLink
from qml_mp.sources import WEB_TOKEN_VARIABLE
from qml_mp.web import HIDDEN, check_extra


def serve_page(arguments: SideArguments, link: SupervisorLink) -> None:
    """Serve until the supervisor is gone. Raises `ConfigurationError` when that cannot be done."""
    check_extra("the page")
    from qml_mp.app import QmlApp
    from qml_mp.web.assembly import assemble
    from qml_mp.web.serving import Address, serve, url_of
    from qml_mp.web.sign_in import Auth

    link.follow()
    host, port = host_and_port(arguments.address)
    auth = Auth.of(arguments.token)
    check_reach(host, has_auth=auth.is_set, ways=WEB_TOKEN_VARIABLE)
    config = ServerConfig(**arguments.config)
    app = QmlApp(arguments.url, config=config)
    app.storage.expect_schema()
    hosts = None if auth.is_set and config.web_hosts is None else (host, *(config.web_hosts or ()))
    page = assemble(app, auth=auth, read_only=False, hide=HIDDEN, hosts=hosts)
    with Address(host=host, port=port).bind(option="the setting web (--web)") as listening:
        serve(page, listening, when_ready=lambda: link.serves_at(url_of(listening)))
