"""A site's own NATS: logged in to as the site wants it, and left as it was found."""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import nats
import pytest
import worlds
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from torpor.link import certificates, engine, secret, server
from torpor.link.link import Link
from torpor.link.nats import NatsLink

OPERATOR, ACCOUNT, USER = 14 << 3, 0, 20 << 3
"""What the keys of NATS are for (github.com/nats-io/nkeys)."""


class Nkey:
    """A key as NATS writes it."""

    def __init__(self, kind: int) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public = self.text(bytes((kind,)) + self.key.public_key().public_bytes_raw())
        seed = bytes((18 << 3 | kind >> 5, (kind & 31) << 3))
        self.seed = self.text(seed + self.key.private_bytes_raw())

    @staticmethod
    def text(raw: bytes) -> str:
        return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")

    def jwt(self, subject: str, name: str, claims: dict[str, Any]) -> str:
        """Signed with this key."""

        def part(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).decode().rstrip("=")

        head = part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        body = {"jti": os.urandom(8).hex(), "iat": int(time.time()), "iss": self.public, "name": name, "sub": subject}
        text = f"{head}.{part(json.dumps({**body, 'nats': {**claims, 'version': 2}}).encode())}"
        return f"{text}.{part(self.key.sign(text.encode()))}"


class Site(worlds.World):
    """One server with a configuration that is not torpor's."""

    def __init__(self, folder: str, config: str, scheme: str, settings: dict[str, Any]) -> None:
        super().__init__()
        port = server.free_ports("127.0.0.1", 1)[0]
        path = os.path.join(folder, "site.conf")
        with open(path, "w") as file:
            file.write(f'listen: "127.0.0.1:{port}"\njetstream: {{ store_dir: "{folder}/js" }}\n{config}\n')
        with open(os.path.join(folder, "site.log"), "w") as log:
            self.process = subprocess.Popen([server.find(), "-c", path], stdout=log, stderr=log)
        self.secret = secret.fresh()
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.engine = engine.site(self.url, settings)

    def make(self, name: str) -> Link:
        return NatsLink(self.engine, self.secret, name)

    def close(self) -> None:
        super().close()
        self.process.terminate()
        self.process.wait()


def use(site: Site) -> None:
    """Two jobs, which do not meet; the first leaves nothing."""
    a, b = site.host("a"), site.host("b")
    a.hear("all")
    a.put("x", b"1")
    mine, site.secret = site.secret, secret.fresh()
    other = site.host("a")
    assert other.get("x") is None
    other.link.publish("all", b"other")
    b.link.publish("all", b"b")
    site.driver.until(lambda: a.messages, "a message")
    assert a.payloads() == [b"b"] and mine.job != site.secret.job
    a.ask(a.link.destroy)
    assert other.get("x") is None


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    made: list[Site] = []
    yield made
    for each in made:
        each.close()


def test_nothing_is_asked_for_and_nothing_is_left(folder: str, sites: list[Site]) -> None:
    import asyncio

    site = Site(folder, "", "nats", {})
    sites.append(site)
    use(site)

    async def streams() -> list[str | None]:
        client = await nats.connect(site.url)
        found = [each.config.name for each in await client.jetstream().streams_info()]
        await client.close()
        return found

    assert asyncio.run(streams()) == [f"KV_torpor-{site.secret.job}"], "only the job's that goes on"


def test_user_password_and_certificates(folder: str, sites: list[Site]) -> None:
    """TLS with a site's own authority, which asks for ours; a wrong password does not get in."""
    who = certificates.identity(secret.fresh(), "site", ["127.0.0.1"])
    server.write(folder, who)
    tls = f'cert_file: "{folder}/certificate.pem", key_file: "{folder}/key.pem", ca_file: "{folder}/authority.pem"'
    settings = {
        "ca": f"{folder}/authority.pem", "cert": f"{folder}/certificate.pem", "key": f"{folder}/key.pem",
        "user": "me", "password": "right",
    }  # fmt: skip
    config = f'tls: {{ {tls}, verify: true }}\nauthorization: {{ user: "me", password: "right" }}'
    site = Site(folder, config, "tls", settings)
    sites.append(site)
    use(site)
    site.engine = engine.site(site.url.replace("//", "//me:wrong@"), {**settings, "password": ""})
    host = site.host("c", wait=False)
    site.driver.until(lambda: host.statuses[-1].final if host.statuses else False, "refused")
    assert "does not let us in" in host.statuses[-1].why


def test_credentials_file(folder: str, sites: list[Site]) -> None:
    operator, system, account, user = Nkey(OPERATOR), Nkey(ACCOUNT), Nkey(ACCOUNT), Nkey(USER)
    limits = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams",
         "consumer"), -1,
    )  # fmt: skip
    limits["wildcards"] = True
    account_jwt = operator.jwt(account.public, "A", {"type": "account", "limits": limits})
    user_jwt = account.jwt(user.public, "U", {"type": "user", "subs": -1, "data": -1, "payload": -1})
    operator_jwt = operator.jwt(operator.public, "O", {"type": "operator"})
    path = os.path.join(folder, "user.creds")
    with open(path, "w") as file:
        file.write(
            f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
    system_jwt = operator.jwt(
        system.public, "SYS", {"type": "account", "limits": {**limits, "mem_storage": 0, "disk_storage": 0}}
    )
    config = (
        f"operator: {operator_jwt}\nsystem_account: {system.public}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {account_jwt}, {system.public}: {system_jwt} }}"
    )
    site = Site(folder, config, "nats", {"credentials": path})
    sites.append(site)
    use(site)
