"""What a secret looks like: the rules of `torpor scan`, as data.

A rule is looked for only where one of its marks is found: finding a few bytes is many times as fast as a regular
expression. Matches are bounded, and none is longer than LONGEST; what matters is where one begins.
"""

from __future__ import annotations

import re

from torpor.named_tuple import NamedTuple

LONGEST = 2048
"""Bytes of the longest match."""


class Rule(NamedTuple):
    """kind: what it is called in the report. marks: bytes of which one is in every match. pattern: the whole of it."""

    kind: str
    marks: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


def _rule(kind: str, marks: str, pattern: str) -> Rule:
    return Rule(kind, tuple(mark.encode() for mark in marks.split(" ")), re.compile(pattern.encode()))


_START = r"(?<![0-9A-Za-z_])"
_BASE64 = r"[A-Za-z0-9+/=]"

RULES = (
    _rule(
        "private key (PEM)", "PRIVATE",
        rf"-----BEGIN (?:[A-Z0-9]{{1,12}} )?PRIVATE KEY-----[\r\n\\]{{1,4}}(?:{_BASE64}{{16}}|Proc-Type:)",
    ),
    _rule("private key (OpenSSH)", "openssh-key-v1", r"openssh-key-v1\0"),
    _rule("private key (PGP)", "PGP", r"-----BEGIN PGP PRIVATE KEY BLOCK-----[\r\n\\]"),
    _rule("private key (age)", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    _rule("AWS access key", "AKIA ASIA", rf"{_START}(?:AKIA|ASIA)[0-9A-Z]{{16}}(?![0-9A-Za-z_])"),
    _rule(
        "AWS secret key", "secret_access_key SECRET_ACCESS_KEY SecretAccessKey",
        r"(?:secret_access_key|SECRET_ACCESS_KEY|SecretAccessKey)[\"' ]{0,3}[:=][\"' ]{0,3}[A-Za-z0-9/+]{40}",
    ),
    _rule("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", rf"{_START}gh[pousr]_[A-Za-z0-9]{{36,255}}"),
    _rule("GitHub token", "github_pat_", rf"{_START}github_pat_[A-Za-z0-9_]{{60,255}}"),
    _rule("GitLab token", "glpat-", rf"{_START}glpat-[A-Za-z0-9_-]{{20,64}}"),
    _rule("Slack token", "xox", rf"{_START}xox[abeoprs]-[A-Za-z0-9-]{{10,255}}"),
    _rule("Slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/T[A-Z0-9]{6,20}/B[A-Z0-9]{6,20}/\w{16,64}"),
    _rule("Google API key", "AIza", rf"{_START}AIza[0-9A-Za-z_-]{{35}}(?![0-9A-Za-z_-])"),
    _rule("Stripe key", "sk_live_ rk_live_", rf"{_START}[rs]k_live_[0-9a-zA-Z]{{20,255}}"),
    _rule("API key", "sk-", rf"{_START}sk-[A-Za-z0-9_-]{{32,255}}"),
    _rule("npm token", "npm_", rf"{_START}npm_[A-Za-z0-9]{{36}}(?![0-9A-Za-z_])"),
    _rule("PyPI token", "pypi-", rf"{_START}pypi-[A-Za-z0-9_-]{{50,255}}"),
    _rule("Hugging Face token", "hf_", rf"{_START}hf_[A-Za-z0-9]{{34}}(?![0-9A-Za-z_])"),
    _rule(
        "JSON web token", "eyJ",
        rf"{_START}eyJ[A-Za-z0-9_-]{{10,600}}\.eyJ[A-Za-z0-9_-]{{10,1000}}\.[A-Za-z0-9_-]{{16,400}}",
    ),
    _rule("authorization header", "uthorization AUTHORIZATION", (
        r"(?i:authorization)[\"']?\s{0,2}:\s{0,2}[\"']?(?:Basic|Bearer|token) [A-Za-z0-9+/=._~-]{12,1000}"
    )),
    _rule("password in a URL", "://", (
        r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{1,15}://[^\s:/@\0\"'<>{}%$]{1,64}:[^\s@/\0\"'<>{}%$]{3,128}@[A-Za-z0-9\[]"
    )),
    _rule("password", "assword asswd ASSW", (
        r"(?i:(?<![a-z])(?:password|passwd))[\"']?\s{0,2}[=:]\s{0,2}[\"']?[^\s\0\"'<>{}%$()\[\],;:=*\x01-\x1f\x7f-\xff]{6,128}"
        r"(?=[\s\0\"'&;,])"
    )),
    _rule("password hash", "$5$ $6$ $y$ $2a$ $2b$ $2y$ $argon2", (
        r"\$(?:[56y]|2[aby]|argon2id?)\$[./A-Za-z0-9$=,]{24,200}"
    )),
)  # fmt: skip
"""In the order of the report."""

VARIABLE = re.compile(
    rb"(?i)(?:^|_)(?:PASS|PASSWD|PASSWORD|PASSPHRASE|PWD|SECRET|TOKEN|CREDENTIALS?|(?:API|ACCESS|PRIVATE|SECRET)_?KEY)"
    rb"(?:_|\d*$)"
)
"""Names of environment variables whose values are secrets."""

HARMLESS = frozenset((b"PWD", b"OLDPWD"))
"""Names that look as if they were."""
