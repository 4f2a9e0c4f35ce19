"""A broker with a listener for each way to connect."""

from __future__ import annotations

from pathlib import Path

from tests.kafka.broker import JavaBroker
from tests.kafka.certificates import Authority
from tests.ports import free_port

USER, PASSWORD = "worker", "pass-word-of-worker"
GUEST, GUEST_PASSWORD = "guest", "pass-word-of-guest"
LEAVER, LEAVER_PASSWORD = "leaver", "pass-word-of-leaver"
"""For the test that takes the password away."""
SESSION_MS = 2500
"""How long a session lasts on the listener BRIEF."""

_LISTENERS = {
    "SECURE": "SASL_SSL",  # SCRAM-SHA-512, PLAIN, OAUTHBEARER
    "MUTUAL": "SSL",  # wants a certificate of the client
    "EXPIRED": "SSL",  # shows one that has expired
    "ELSEWHERE": "SSL",  # shows one of another machine
    "BRIEF": "SASL_PLAINTEXT",  # SCRAM-SHA-512, OAUTHBEARER; sessions end soon
    "BEHIND": "PLAINTEXT",  # stands behind a proxy
}
_MODULE = "org.apache.kafka.common.security"
_BEARER = f'{_MODULE}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="b";'
_JAAS = {
    "SECURE.scram-sha-512": f"{_MODULE}.scram.ScramLoginModule required;",
    "SECURE.plain": f'{_MODULE}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
    "BRIEF.scram-sha-512": f"{_MODULE}.scram.ScramLoginModule required;",
    "SECURE.oauthbearer": _BEARER,
    "BRIEF.oauthbearer": _BEARER,
}


class SecureBroker:
    """A running broker, its listeners' addresses by name, and the certificates of everybody.

    ``worker`` and whoever comes to the listeners without a name may do everything, ``guest`` what no ACL forbids.
    """

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory, "authority")
        self.proxy_port = free_port()
        self._ports = {name: free_port() for name in _LISTENERS}
        self._directory = directory
        users = {USER: PASSWORD, GUEST: GUEST_PASSWORD, LEAVER: LEAVER_PASSWORD}
        self.broker = JavaBroker(directory, self._secured, users)
        self.address = self.broker.address
        """Of the listener that wants nothing."""
        self.broker.start()

    def at(self, listener: str) -> str:
        """Return the address of a listener."""
        return f"127.0.0.1:{self._ports[listener]}"

    def close(self) -> None:
        """End it."""
        self.broker.kill()

    def _secured(self, settings: dict[str, str]) -> dict[str, str]:
        own = self.authority.sign("broker")
        shown = {
            "SECURE": own, "MUTUAL": own, "EXPIRED": self.authority.sign("expired", days=-1),
            "ELSEWHERE": self.authority.sign("elsewhere", address="127.0.0.2"),
        }  # fmt: skip
        trusted = self.authority.certificate.read_text().replace("\n", "\\n")
        ports = self._ports | {"BEHIND": self.proxy_port}
        protocols = ",".join(f"{name}:{protocol}" for name, protocol in _LISTENERS.items())
        settings |= {
            "listeners": ",".join([settings["listeners"], *(f"{n}://{self.at(n)}" for n in _LISTENERS)]),
            "advertised.listeners": ",".join(
                [settings["advertised.listeners"], *(f"{n}://127.0.0.1:{ports[n]}" for n in _LISTENERS)]
            ),
            "listener.security.protocol.map": f"{settings['listener.security.protocol.map']},{protocols}",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            "listener.name.brief.sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.truststore.type": "PEM",
            "listener.name.mutual.ssl.truststore.certificates": trusted,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{USER}",
            "allow.everyone.if.no.acl.found": "true",
        }
        for mechanism in ("scram-sha-512", "oauthbearer"):
            settings[f"listener.name.brief.{mechanism}.connections.max.reauth.ms"] = str(SESSION_MS)
        for place, module in _JAAS.items():
            listener, mechanism = place.split(".")
            settings[f"listener.name.{listener.lower()}.{mechanism}.sasl.jaas.config"] = module
        for listener, pair in shown.items():
            certificate, key = pair.in_one_line()
            name = f"listener.name.{listener.lower()}.ssl.keystore"
            settings |= {f"{name}.type": "PEM", f"{name}.key": key, f"{name}.certificate.chain": certificate}
        return settings
