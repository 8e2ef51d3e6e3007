-- The ledger that each site showed last: a copy of a site's folder cannot go on from it.

CREATE TABLE site_ledgers (
    site         TEXT PRIMARY KEY,
    records      INTEGER NOT NULL,
    -- In hexadecimal digits.
    head         TEXT NOT NULL,
    -- Updates that have come since then, each of which the site has booked.
    answered     INTEGER NOT NULL DEFAULT 0,
    -- SHA-256 of the certificate that was shown with it, and where from.
    certificate  TEXT NOT NULL,
    address      TEXT NOT NULL,
    -- Seconds since the Unix epoch.
    shown        INTEGER NOT NULL
) STRICT;
