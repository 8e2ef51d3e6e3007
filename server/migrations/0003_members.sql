-- Who may become a member, who has, and whose certificates are void.

-- Tokens themselves are never stored. Times are seconds since the Unix epoch.
CREATE TABLE invites (
    token_sha256  TEXT PRIMARY KEY,
    site          TEXT NOT NULL,
    created       INTEGER NOT NULL,
    expires       INTEGER NOT NULL,
    withdrawn     INTEGER NOT NULL DEFAULT 0,
    -- Once it is used: when, the SHA-256 of the key that was certified, and the certificates that were given for it.
    used          INTEGER,
    key_sha256    TEXT,
    chain_pem     TEXT
) STRICT;

-- A site's certificates that were issued at this moment or before it are void.
CREATE TABLE revocations (
    site    TEXT PRIMARY KEY,
    before  INTEGER NOT NULL
) STRICT;
