"""Ed25519 signatures verified by the OpenSSL of the system (libcrypto.so.3), where there is one.

The package `cryptography` brings an OpenSSL of its own, which takes 6 ms to load; this one takes 3, and a restart needs
nothing else of it, unless its checkpoint is encrypted. (With ctypes, which a restart has anyway, it would be no less.)
Only a yes counts: whatever else comes of it, crypto.py asks the package.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_void_p

from torpor.model.data import Buffer

_ED25519 = 1087
"""EVP_PKEY_ED25519 (openssl/obj_mac.h)."""
_KEY, _SIGNATURE = 32, 64
"""Their lengths (RFC 8032)."""


def verified(key: bytes, signature: bytes, message: Buffer) -> bool:
    """Does libcrypto say that `message` was signed with the secret key that belongs to the public `key`? False as well
    where there is none, or it is not able to."""
    if len(key) != _KEY or len(signature) != _SIGNATURE:
        return False
    try:
        lib = ctypes.CDLL("libcrypto.so.3")
        make_key, free_key = lib.EVP_PKEY_new_raw_public_key, lib.EVP_PKEY_free
        make_context, free_context = lib.EVP_MD_CTX_new, lib.EVP_MD_CTX_free
        begin, verify = lib.EVP_DigestVerifyInit, lib.EVP_DigestVerify
    except (OSError, AttributeError):
        return False
    make_key.restype = make_context.restype = c_void_p
    make_key.argtypes = (c_int, c_void_p, c_char_p, c_size_t)
    free_key.argtypes = free_context.argtypes = (c_void_p,)
    free_key.restype = free_context.restype = None
    begin.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
    verify.argtypes = (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)
    text = bytes(message)
    public = make_key(_ED25519, None, key, _KEY)
    context = make_context()
    try:
        if not public or not context or begin(context, None, None, None, public) != 1:
            return False
        return bool(verify(context, signature, _SIGNATURE, text, len(text)) == 1)
    finally:
        free_context(context)
        free_key(public)
