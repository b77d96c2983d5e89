"""Action `serve`: the study's page, until Ctrl-C."""

from __future__ import annotations

from talltree.annotation.store import Store
from talltree.interrupt import Interrupts
from talltree.stages.annotate.config import Config, listed
from talltree.web import server


def run(config: Config) -> None:
    """Adds the annotators that are not there yet, prints everybody's link, and serves until stopped."""
    options = config.serving
    password = server.read_password(options.password_file)
    server.check_address(options.host, password, options.allowed_hosts)
    server.require_packages()
    with Store.open(config.folder) as store:
        store.add_missing(listed(config.annotators))
        with server.listen(options.host, options.port) as socket, Interrupts():
            address = server.address(options.host, socket.getsockname()[1], options.allowed_hosts)
            print(f"{config.folder} is served at {address}; Ctrl-C stops it, and whatever was saved stays")
            if not store.annotators():
                print("nobody can judge yet: add people with --annotators '[Anna, Ben]'")
            for annotator in store.annotators():
                print(f"  {annotator.name}: {address}/a/{annotator.token}", flush=True)
            page = server.make_server(store, socket, options.host, options.allowed_hosts, password)
            page.run(sockets=[socket])
        total = len(store.judgements())
    print(f"stopped; {total:,} judgements are in {config.folder}")
